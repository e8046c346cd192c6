"""The folder of a result: every number, every test image's probabilities, the probes, and the page that shows them."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vivid_monai.data.skipped import Skipped, SkipReport
from vivid_monai.evaluation.encoders import Encoder, VividEncoder, for_task
from vivid_monai.evaluation.evaluate import Evaluated
from vivid_monai.evaluation.examples import collect_examples
from vivid_monai.evaluation.predictions import write_predictions
from vivid_monai.evaluation.probes import LinearProbe, save_probe
from vivid_monai.evaluation.provenance import provenance, resolved_config
from vivid_monai.evaluation.report import write_report
from vivid_monai.evaluation.results import Results
from vivid_monai.evaluation.summary import summary_table
from vivid_monai.evaluation.task import Task
from vivid_monai.files import whole_file
from vivid_monai.networks.spd_file import load_spd

FILES = {
    "report.html": "the page to look at: tables, curves, examples; opens without a network",
    "results.json": "the numbers, the command and the versions",
    "metrics.csv": "the same numbers as a table",
    "predictions.csv": "states and probabilities of every test image",
    "probes/": "the fitted probes, to apply elsewhere",
    "skipped.csv": "training, validation and test images that could not be read",
    "config.json": "the resolved config",
}


def finish(
    evaluated: Evaluated,
    task: Task,
    folder: Path,
    *,
    shown: Encoder,
    spd: Path | None = None,
    n_examples: int = 6,
) -> Results:
    """Write everything about a result.

    Args:
        evaluated: what came out of the task.
        folder: where it goes.
        shown: the encoder whose example images the page shows, where it is one of ours.
        spd: file of the query groups that it was taught through, for their attention maps.
        n_examples: how many test images the page shows.

    Returns:
        The results with their provenance, as they are stored.

    Raises:
        VividError: a file cannot be written; as the examples and the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = replace(evaluated.results, run={**provenance(), "seconds": evaluated.seconds, "data": _data(task)})
    results.save(folder / "results.json")
    write_predictions(folder / "predictions.csv", evaluated.test, results.fields, evaluated.scores, seeds=results.seeds)
    for name, probes in evaluated.probes.items():
        for seed, probe in zip(results.seeds, probes, strict=True):
            if not isinstance(probe, LinearProbe):
                continue  # as large as its training set
            save_probe(probe, folder / "probes" / f"{name}-{seed}.safetensors", fields=results.fields)
    if isinstance(shown, VividEncoder) and n_examples:
        items = task.manifest.select("test").items(task.manifest.fields)
        seen = for_task(shown, window=task.window)
        assert isinstance(seen, VividEncoder)
        examples = collect_examples(seen, items, spd=None if spd is None else load_spd(spd), n=n_examples)
        examples.save(folder / "examples.npz")
    (folder / "skipped.csv").unlink(missing_ok=True)  # of an earlier run into the same folder
    if results.skipped:
        report = SkipReport()
        report.add(Skipped(*one) for one in results.skipped)
        report.write(folder / "skipped.csv")
    config = folder / "config.json"
    if not config.exists():
        with whole_file(config) as part:
            part.write_text(json.dumps(resolved_config(), indent=2, default=str) + "\n")
    write_report(folder)
    return results


def print_output(results: Results, folder: Path, *, more: Mapping[str, str] | None = None) -> None:
    """Print the table of the results, the files of their folder and what to do next.

    Args:
        more: further files of the folder and what they are.
    """
    print("\n" + summary_table(results))
    print(f"\nIn {folder}:")
    for name, words in {**FILES, **(more or {})}.items():
        if any((folder / one).exists() for one in name.split(", ")):
            print(f"  {name:28s} {words}")
    print(f"\nNext: open {folder / 'report.html'}; compare runs on the same images: vivid report {folder} OTHER_RUN")


def _data(task: Task) -> dict[str, Any]:
    """What the numbers rest on: the data set, how it was split, its card."""
    manifest = task.manifest
    source = None if task.source is None else _name(task.source)
    return {
        "dataset": _name(manifest),
        "source": source,
        "splits": manifest.splits,
        "image_root": str(manifest.image_root),
        "manifest": None if manifest.path is None else os.path.abspath(manifest.path),
        "card": manifest.card,
    }


def _name(manifest: Any) -> str:
    return ", ".join(sorted(set(manifest.table["dataset"].to_pylist())))
