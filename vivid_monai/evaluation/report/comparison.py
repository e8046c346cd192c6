"""The page that holds runs against each other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from vivid_monai.errors import VividError
from vivid_monai.evaluation.report.page import field_panels, forest_of_differences, forest_of_fields
from vivid_monai.evaluation.report.paired import Measured, measure_all, paired_differences
from vivid_monai.evaluation.report.render import render
from vivid_monai.evaluation.report.run_folder import RunFolder
from vivid_monai.evaluation.report.table import COLUMNS, difference_rows, metric_rows, write_table
from vivid_monai.evaluation.report.words import headline, interval_words
from vivid_monai.evaluation.results import METRICS, EncoderResult, Estimate, Results
from vivid_monai.metrics.intervals import Patients
from vivid_monai.storage.files import whole_file


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs, and the same numbers as .csv and .json beside it.

    On the same test images with the same labels, the first encoder of the first run is held against every other one,
    paired; macro averages are over the fields that every run has in its own. On other images, runs stand side by side,
    without differences, and the page says why.

    Args:
        folders: of at least two runs, the reference first.
        out: the page, ending in .html.

    Raises:
        VividError: fewer than two runs, one run twice, no field in common, findings and classes mixed, another ending;
            as :meth:`RunFolder.load`.
    """
    runs = _load(folders, out)
    apart = _why_apart(list(runs.values()))
    merged = _merge(runs)
    if apart is None:
        merged = _paired(merged, runs)
    panels, without = field_panels(_as_one(merged, runs)) if apart is None else ([], {})
    render(
        "comparison.html.j2",
        out,
        title=f"{merged.task}: {len(runs)} runs",
        r=merged,
        runs={label: run.results for label, run in runs.items()},
        folders={label: str(run.path) for label, run in runs.items()},
        apart=apart,
        headline=headline(merged) if apart is None else [],
        intervals=interval_words(merged, seeds=False),
        forest=forest_of_fields(merged, counts=apart is None),
        differences=forest_of_differences(merged.differences),
        panels=panels,
        without_curves=without,
    )
    rows = [(label, *row) for label, run in runs.items() for row in metric_rows(replace(run.results, differences=[]))]
    rows += [("", *row) for row in difference_rows(merged.differences)]
    write_table(out.with_suffix(".csv"), ("run", *COLUMNS), rows)
    with whole_file(out.with_suffix(".json")) as part:
        part.write_text(json.dumps(_as_json(runs, merged, apart), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return out


def _load(folders: Sequence[Path], out: Path) -> dict[str, RunFolder]:
    if out.suffix != ".html":
        raise VividError(f"{out}: a comparison is a page that ends in .html; .csv and .json are written beside it")
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < 2 or len(set(paths)) < len(paths):
        raise VividError("a comparison needs at least two runs, each named once")
    runs = {label: RunFolder.load(Path(f)) for label, f in zip(_labels(paths), folders, strict=True)}
    if len(kinds := {run.results.kind for run in runs.values()}) > 1:
        raise VividError(
            f"runs of {' and of '.join(sorted(kinds))} cannot be compared: their numbers mean other things"
        )
    return runs


def _labels(paths: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells them apart."""
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _shared_fields(runs: Mapping[str, RunFolder]) -> list[str]:
    first, *others = runs.values()
    fields = [name for name in first.results.fields if all(name in run.results.fields for run in others)]
    if not fields:
        raise VividError(f"{' and '.join(runs)} have no field in common, so there is nothing to compare")
    return fields


def _why_apart(runs: Sequence[RunFolder]) -> str | None:
    """Why numbers of these runs cannot be subtracted; None where they can."""
    first, *others = runs
    if any(run.results.test["images_sha256"] != first.results.test["images_sha256"] for run in others):
        return "The runs were tested on other images"
    a = first.predictions
    for run in others:
        b = run.predictions
        shared = [field for field in a.fields if field in b.fields]
        columns = [[predictions.fields.index(field) for field in shared] for predictions in (a, b)]
        if not np.array_equal(a.patients, b.patients):
            return "The runs have the same test images, but of other patients"
        if not np.array_equal(a.states[:, columns[0]], b.states[:, columns[1]]):
            return "The runs have the same test images, but with other labels"
    return None


def _merge(runs: Mapping[str, RunFolder]) -> Results:
    """All encoders in one, named run: encoder, with the fields that the runs share."""
    fields = _shared_fields(runs)
    first = next(iter(runs.values())).results
    all_results = {label: run.results for label, run in runs.items()}
    macro_fields = [name for name in fields if all(name in r.macro_fields for r in all_results.values())]
    excluded = {
        name: "; ".join(dict.fromkeys(r.excluded[name] for r in all_results.values() if name in r.excluded))
        for name in fields
        if name not in macro_fields
    }
    encoders = {
        f"{label}: {name}": _over(macro_fields, r, encoder)
        for label, r in all_results.items()
        for name, encoder in r.encoders.items()
    }
    tasks = list(dict.fromkeys(r.task for r in all_results.values()))
    return replace(
        first,
        task=" and ".join(tasks),
        fields=fields,
        macro_fields=macro_fields,
        excluded=excluded,
        encoders=encoders,
        differences=[],
        warnings=[f"{label}: {one}" for label, r in all_results.items() for one in r.warnings],
    )


def _over(macro_fields: list[str], results: Results, encoder: EncoderResult) -> EncoderResult:
    """The encoder with macro averages over some fields; an average over others than its own has no interval yet."""
    if set(macro_fields) == set(results.macro_fields):
        return encoder
    macro = {}
    for metric in METRICS:
        values = [encoder.fields[field][metric].value for field in macro_fields]
        defined = [value for value in values if value is not None]
        macro[metric] = Estimate(sum(defined) / len(defined) if defined and len(defined) == len(values) else None)
    return replace(encoder, macro=macro)


def _paired(merged: Results, runs: Mapping[str, RunFolder]) -> Results:
    """With the differences, and the intervals of macro averages that no run has."""
    one = next(iter(runs.values()))
    how, level = one.results.intervals, one.results.intervals["level"]
    exclusive = merged.kind == "classes" and all(run.results.fields == merged.fields for run in runs.values())
    names = merged.fields if exclusive else merged.macro_fields
    if not names:
        return merged
    scores: dict[str, np.ndarray] = {}
    states = np.empty((0, 0))
    for label, run in runs.items():
        columns = [run.predictions.fields.index(name) for name in names]
        states = run.predictions.states[:, columns]
        scores |= {f"{label}: {name}": values[:, :, columns] for name, values in run.predictions.scores.items()}
    patients = Patients(one.predictions.patients, n_resamples=how["resamples"], seed=how["seed"])
    kept = [names.index(name) for name in merged.macro_fields]
    measured = measure_all(scores, states, patients, kept=kept, exclusive=exclusive)
    encoders = {
        name: replace(encoder, macro=encoder.macro | _macro(measured, name, level))
        if encoder.macro["auroc"].low is None
        else encoder
        for name, encoder in merged.encoders.items()
    }
    return replace(merged, encoders=encoders, differences=paired_differences(measured, level))


def _macro(measured: Mapping[str, Mapping[str, Measured]], name: str, level: float) -> dict[str, Estimate]:
    return {metric: measured[metric][name].estimate(level) for metric in ("auroc", "ap")}


def _as_one(merged: Results, runs: Mapping[str, RunFolder]) -> RunFolder:
    """The runs as one with all encoders, to draw their curves together."""
    one = next(iter(runs.values()))
    columns = [one.predictions.fields.index(field) for field in merged.fields]
    scores: dict[str, np.ndarray] = {}
    for label, run in runs.items():
        own = [run.predictions.fields.index(field) for field in merged.fields]
        scores |= {f"{label}: {name}": values[:, :, own] for name, values in run.predictions.scores.items()}
    states = one.predictions.states[:, columns]
    return RunFolder(
        one.path, merged, replace(one.predictions, fields=merged.fields, states=states, scores=scores), None
    )


def _as_json(runs: Mapping[str, RunFolder], merged: Results, apart: str | None) -> dict:
    return {
        "format": "vivid-comparison",
        "version": 1,
        "side_by_side": apart,
        "macro_fields": merged.macro_fields,
        "macro": {name: {m: asdict(e) for m, e in encoder.macro.items()} for name, encoder in merged.encoders.items()},
        "differences": [asdict(one) for one in merged.differences],
        "runs": {label: run.results.to_dict() for label, run in runs.items()},
    }
