"""The folder of a result: every number, every test image's probabilities, the probes, and the page that shows them."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from vivid_monai.evaluation.encoders import Encoder, VividEncoder, for_task
from vivid_monai.evaluation.evaluate import Evaluated
from vivid_monai.evaluation.examples import collect_examples
from vivid_monai.evaluation.format import summary_table
from vivid_monai.evaluation.probes import LinearProbe, save_probe
from vivid_monai.evaluation.report import write_report
from vivid_monai.evaluation.results import Results, write_predictions
from vivid_monai.evaluation.task import Task
from vivid_monai.networks.modules import load_module
from vivid_monai.networks.spd import SPD
from vivid_monai.storage.files import whole_file
from vivid_monai.storage.skipped import Skipped, SkipReport

PACKAGES = ("vivid-monai", "monai", "torch", "transformers", "pytorch-ignite", "numpy", "scikit-learn", "scipy")


def provenance() -> dict[str, Any]:
    """The command, the versions and the time (UTC, to the second), as they are stored with results."""
    return {
        "command": command_line(),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def resolved_config() -> dict[str, Any]:
    """The merged config of the bundle workflow that is running this code, overrides included; ``{}`` outside of one.

    A config cannot name itself in MONAI's language, so the workflow is found among the callers.
    """
    frame = sys._getframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return dict(workflow.parser.get())
        frame = frame.f_back  # type: ignore[assignment]
    return {}


def command_line() -> str:
    """The command that started this process, as one can type it again."""
    program = Path(sys.argv[0])
    start = (
        ["python", "-m", "monai.bundle"] if program.parts[-3:] == ("monai", "bundle", "__main__.py") else [program.name]
    )
    return " ".join(map(_quoted, [*start, *sys.argv[1:]]))


def _quoted(word: str) -> str:
    """A word for the shell: in double quotes where it holds single ones, as lists of configs do."""
    return f'"{word}"' if "'" in word and not set('"$`\\!') & set(word) else shlex.quote(word)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {"python": ".".join(map(str, sys.version_info[:3])), **{name: version(name) for name in PACKAGES}}


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
        read_through = None if spd is None else load_module(spd, {"spd": SPD}).module
        examples = collect_examples(seen, items, spd=read_through, n=n_examples)
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
