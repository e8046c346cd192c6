"""HTML reports: of one run, and of several compared."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from vivid_monai import __version__
from vivid_monai.errors import VividError
from vivid_monai.evaluation import format as words
from vivid_monai.evaluation.examples import Examples, draw_examples, draw_key
from vivid_monai.evaluation.figures import Line, curves, forest, key, reliability, reliability_bins, roc
from vivid_monai.evaluation.heatmaps import FAINT, GRID
from vivid_monai.evaluation.measure import PAIRED, Runs, difference_rows, resample, rows_of
from vivid_monai.evaluation.results import (
    ALL,
    CLASS_METRICS,
    CSV_COLUMNS,
    MACRO,
    METRICS,
    Predictions,
    Results,
    Row,
    csv_rows,
    images_digest,
    read_predictions,
    write_csv,
)
from vivid_monai.evaluation.training import Training, read_training
from vivid_monai.metrics.intervals import Patients
from vivid_monai.metrics.masked import masked_auroc
from vivid_monai.metrics.statistics import BINS
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.states import PRESENT

TEMPLATES = Path(__file__).parent / "templates"
DATASETS = "datasets"
"""Folder of an evaluation's results on each of several data sets alone."""


def read_datasets(folder: Path) -> dict[Path, Results]:
    """Folder → results on one data set alone, of the folder of an evaluation; empty where it is of one data set."""
    paths = sorted((folder / DATASETS).glob("*/results.json"))
    return {path.parent: Results.load(path) for path in paths}


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run and metrics.csv, from results.json, predictions.csv and examples.npz of its folder.

    Args:
        folder: of the run; metrics.csv goes there.
        out: the page; report.html of the folder where not given.

    Returns:
        The page: one file that asks for nothing else.

    Raises:
        VividError: a file is missing or broken, they are not of one run, or the page cannot be written.
    """
    results, predictions = load_run(folder)
    stored, training = folder / "examples.npz", read_training(folder)
    page = out or folder / "report.html"
    _render(
        "report.html.j2",
        page,
        results,
        predictions,
        title=words.run_title(results) if training else f"{results.task}: evaluation",
        training=training,
        curves=_curves(training) if training else [],
        headline=words.headline(results),
        intervals=words.interval_words(results),
        datasets={
            quote(os.path.relpath(one / "report.html", page.parent)): alone
            for one, alone in read_datasets(folder).items()
        },
        heat_key=draw_key(),
        n_cells=GRID**2,
        faint=FAINT,
        examples=_shown(Examples.load(stored), results, predictions) if stored.is_file() else None,
    )
    write_csv(folder / "metrics.csv", CSV_COLUMNS, csv_rows(results.rows, results.test))
    return page


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs, and the same numbers as .csv and .json beside it.

    On the same test images with the same labels, the first encoder of the first run is compared with every other one,
    paired; macro averages are over the fields that every run has in its own. On other images, runs stand side by side,
    without differences, and the page says why.

    Args:
        folders: of at least two runs, the reference first.
        out: the page, ending in .html.

    Raises:
        VividError: fewer than two runs, one run twice, no field in common, findings and classes mixed, another ending;
            as :func:`write_report`.
    """
    if out.suffix != ".html":
        raise VividError(f"{out}: a comparison is a page that ends in .html; .csv and .json are written beside it")
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < 2 or len(set(paths)) < len(paths):
        raise VividError("a comparison needs at least two runs, each named once")
    depth = 1  # as much of the end of each path as distinguishes them
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    labels = ["/".join(path.parts[-depth:]) for path in paths]
    loaded = [load_run(Path(folder)) for folder in folders]
    runs = {label: results for label, (results, _) in zip(labels, loaded, strict=True)}
    if len(kinds := {run.kind for run in runs.values()}) > 1:
        raise VividError(
            f"runs of {' and of '.join(sorted(kinds))} cannot be compared: their numbers mean other things"
        )
    apart = _why_apart(loaded)
    results, predictions = _merged(runs, [predictions for _, predictions in loaded], paired=apart is None)
    _render(
        "comparison.html.j2",
        out,
        results,
        None if apart else predictions,
        title=f"{results.task}: {len(runs)} runs",
        runs=runs,
        folders=dict(zip(labels, map(str, folders), strict=True)),
        apart=apart,
        headline=[] if apart else words.headline(results),
        intervals=words.interval_words(results, seeds=False),
    )
    rows = [(label, *row) for label, run in runs.items() for row in csv_rows(_values(run), run.test)]
    rows += [("", *row) for row in csv_rows(results.differences, results.test)]
    write_csv(out.with_suffix(".csv"), ("run", *CSV_COLUMNS), rows)
    content = {
        "format": "vivid-comparison",
        "version": 2,
        "side_by_side": apart,
        "macro_fields": results.macro_fields,
        "macro": [row._asdict() for row in _values(results) if row.field == MACRO and row.seed is None],
        "differences": [row._asdict() for row in results.differences],
        "runs": {label: run.to_dict() for label, run in runs.items()},
    }
    with whole_file(out.with_suffix(".json")) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return out


def load_run(folder: Path) -> tuple[Results, Predictions]:
    """What results.json and predictions.csv hold, where they are of one run."""
    results, predictions = Results.load(folder / "results.json"), read_predictions(folder / "predictions.csv")
    pairs = {
        "fields": (results.fields, predictions.fields),
        "encoders": (list(results.encoders), list(predictions.scores)),
        "seeds": (results.seeds, predictions.seeds),
        "test images": (results.test["images_sha256"], images_digest(predictions.ids)),
    }
    wrong = [what for what, (stored, found) in pairs.items() if stored != found]
    for name, scores in {} if wrong else predictions.scores.items():
        values = np.mean([masked_auroc(seed, predictions.states) for seed in scores], axis=0)
        stored = np.array([results.get("auroc", field, name).value for field in results.fields], float)
        same = np.isclose(stored, values, rtol=0, atol=1e-6, equal_nan=True)
        wrong += [f"AUROC of {field} ({name})" for field, ok in zip(results.fields, same, strict=True) if not ok]
    if wrong:
        raise VividError(
            f"{folder}: results.json and predictions.csv are not of one run, they differ in {', '.join(wrong[:4])}; "
            "run the evaluation again"
        )
    return results, predictions


def _why_apart(runs: Sequence[tuple[Results, Predictions]]) -> str | None:
    """Why numbers of these runs cannot be subtracted; None where they can."""
    (first, a), *others = runs
    if any(results.test["images_sha256"] != first.test["images_sha256"] for results, _ in others):
        return "The runs were tested on other images"
    for _, b in others:
        shared = [field for field in a.fields if field in b.fields]
        if not np.array_equal(a.patients, b.patients):
            return "The runs have the same test images, but of other patients"
        if not np.array_equal(a.select(shared).states, b.select(shared).states):
            return "The runs have the same test images, but with other labels"
    return None


def _merged(
    runs: Mapping[str, Results], predictions: Sequence[Predictions], *, paired: bool
) -> tuple[Results, Predictions]:
    """All encoders in one, named run: encoder, with the fields that the runs share.

    A macro average over other fields than a run's own is taken again; it has an interval where the images are the same.
    """
    first = next(iter(runs.values()))
    fields = [name for name in first.fields if all(name in r.fields for r in runs.values())]
    if not fields:
        raise VividError(f"{' and '.join(runs)} have no field in common, so there is nothing to compare")
    macro_fields = [name for name in fields if all(name in r.macro_fields for r in runs.values())]
    kept = [fields.index(name) for name in macro_fields]
    shared = [one.select(fields) for one in predictions]
    scores = {f"{label}: {name}": s for label, one in zip(runs, shared, strict=True) for name, s in one.scores.items()}
    resampled: dict[str, Runs] = {}
    if paired:
        exclusive = first.kind == "classes" and all(r.fields == fields for r in runs.values())
        metrics = [metric for metric in PAIRED if (exclusive if metric in CLASS_METRICS else kept)]
        patients = Patients(shared[0].patients, n_resamples=first.intervals["resamples"], seed=first.intervals["seed"])
        resampled = {name: resample(s, shared[0].states, patients, metrics) for name, s in scores.items()}
    n = first.test["n_images"]
    rows: list[Row] = []
    reasons: dict[str, dict[str, None]] = {}
    for label, r in runs.items():
        own = {*macro_fields} == {*r.macro_fields}
        copied = {*fields, ALL, MACRO} if own else {*fields, ALL}
        rows += [row._replace(encoder=f"{label}: {row.encoder}") for row in _values(r) if row.field in copied]
        for name in () if own else r.encoders:
            for metric in METRICS:
                encoder = f"{label}: {name}"
                if kept and metric in resampled.get(encoder, {}):
                    rows += rows_of(metric, MACRO, encoder, resampled[encoder][metric], kept, n)
                else:
                    values = [value for f in macro_fields if (value := r.get(metric, f, name).value) is not None]
                    mean = sum(values) / len(kept) if len(values) == len(kept) > 0 else None
                    rows.append(Row(metric, MACRO, encoder, None, mean, n=r.test["n_images"]))
        for name in r.excluded:
            reasons.setdefault(name, {})[r.excluded[name]] = None
    merged = replace(
        first,
        task=" and ".join(dict.fromkeys(r.task for r in runs.values())),
        fields=fields,
        macro_fields=macro_fields,
        excluded={name: "; ".join(reasons[name]) for name in fields if name in reasons and name not in macro_fields},
        encoders={f"{label}: {name}": one for label, r in runs.items() for name, one in r.encoders.items()},
        rows=rows + (difference_rows(resampled, kept, n) if resampled else []),
        confusion={},
        warnings=[f"{label}: {warning}" for label, r in runs.items() for warning in r.warnings],
    )
    return merged, replace(shared[0], scores=scores)


def _values(results: Results) -> list[Row]:
    return [row for row in results.rows if not row.minus]


def _shown(examples: Examples, results: Results, predictions: Predictions, most: int = 4) -> list[dict[str, Any]]:
    """The example images with their findings and the highest probabilities of the first encoder, mean over seeds.

    "present" is None where predictions.csv has no such image. A transfer task puts the data set before the id there,
    since two hospitals may use one id.
    """
    scores = next(iter(predictions.scores.values())).mean(axis=0)
    rows = {str(name): row for row, name in enumerate(predictions.ids)}
    dataset = results.run.get("data", {}).get("dataset", "")
    shown = draw_examples(examples)
    for one in shown:
        row = rows.get(one["id"], rows.get(f"{dataset}/{one['id']}"))
        one["present"] = None
        if row is not None:
            highest = np.argsort(-scores[row], kind="stable")[:most]
            one["probabilities"] = [(predictions.fields[f], float(scores[row, f])) for f in highest]
            one["present"] = [predictions.fields[f] for f in np.flatnonzero(predictions.states[row] == PRESENT)]
    return shown


def _forest_of_fields(results: Results, *, counts: bool) -> Markup | None:
    """AUROC of every field, and their mean first; with the numbers of test images where all encoders have the same."""

    def aurocs(field: str) -> list[Row]:
        return [results.get("auroc", field, name) for name in results.encoders]

    lines = [Line(f"Macro average of {len(results.macro_fields)}", aurocs(MACRO), strong=True)]
    n_present, n_absent = results.test["n_present"], results.test["n_absent"]
    for field in results.fields:
        mark = " *" if field in results.excluded else ""
        note = f"{n_present[field]:,} present, {n_absent[field]:,} absent" if counts else ""
        lines.append(Line(field + mark, aurocs(field), note))
    macro = _of_all(results, "auroc", MACRO)
    title = f"AUROC with intervals for {len(results.fields)} fields. Macro average: {macro}. The table has every value."
    return forest(lines, "forest", title)


def _forest_of_differences(rows: list[Row]) -> Markup | None:
    lines = [Line(f"{row.encoder} − {row.minus}", [row], words.metric_name(row)) for row in rows]
    values = "; ".join(f"{line.label}, {line.note}: {words.estimate(line.rows[0])}" for line in lines)
    return forest(lines, "differences", f"Paired differences. {values}.", differences=True)


def _panels(results: Results, predictions: Predictions) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Curves of every field that has both kinds of image; the other fields with the reason."""
    panels, without = [], {}
    for f, field in enumerate(results.fields):
        present, absent = results.test["n_present"][field], results.test["n_absent"][field]
        if not (present and absent):
            without[field] = f"{present:,} present, {absent:,} absent"
            continue
        states, scores = predictions.states[:, f], [one[:, :, f] for one in predictions.scores.values()]
        bins = [reliability_bins(one, states) for one in scores]
        of_roc = f"ROC curves of {field}. AUROC: {_of_all(results, 'auroc', field)}."
        of_bins = f"Reliability of {field}. Calibration error: {_of_all(results, 'ece', field)}."
        panels.append(
            {
                "field": field,
                "roc": roc(scores, states, f"roc{f}", of_roc),
                "reliability": reliability(bins, f"rel{f}", of_bins),
                "counts": {name: counts.tolist() for name, (counts, *_) in zip(results.encoders, bins, strict=True)},
            }
        )
    return panels, without


def _curves(training: Training) -> list[dict[str, Any]]:
    """Each panel of the training's curves, with the last value of each line."""
    shown = []
    for number, (title, lines) in enumerate(training.panels.items()):
        last = {name: points[-1][1] for name, points in lines.items()}
        said = "; ".join(f"{name} {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in lines.items())
        drawn = curves(lines, f"curve{number}", f"{title} over {training.steps} steps. First and last: {said}.")
        shown.append({"title": title, "last": last, "drawn": drawn})
    return shown


def _of_all(results: Results, metric: str, field: str) -> str:
    return "; ".join(f"{name} {words.estimate(results.get(metric, field, name))}" for name in results.encoders)


def _render(template: str, path: Path, results: Results, predictions: Predictions | None, **context: Any) -> None:
    """Write a page, whole or not at all; without predictions it has no curves and no numbers of images. What goes into
    a template is escaped, unless this package drew it; a name that is missing is an error, not an empty place."""
    panels, without = _panels(results, predictions) if predictions else ([], {})
    numbers = count()
    page = (
        environment()
        .get_template(template)
        .render(
            r=results,
            forest=_forest_of_fields(results, counts=predictions is not None),
            differences=_forest_of_differences(results.differences),
            panels=panels,
            without_curves=without,
            key=lambda series: key(series, f"key{next(numbers)}"),
            **context,
        )
    )
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")


def _is_table(value: Mapping[str, Any]) -> bool:
    """Whether every part of a mapping has the same names for one number or word each, so that it is a table."""
    rows = list(value.values())
    return all(isinstance(row, Mapping) and row and row.keys() == rows[0].keys() for row in rows) and not any(
        isinstance(cell, Mapping | list | tuple) for row in rows for cell in row.values()
    )


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of the pages."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: tuple[Any, ...] = (words.number, words.signed, words.count, words.interval, words.difference_words)
    filters += (words.metric_name, words.duration, words.run_title)
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {
        "METRICS": {metric: words.NAMES[metric] for metric in METRICS},
        "CLASS_METRICS": {metric: words.NAMES[metric] for metric in CLASS_METRICS},
        "EXPLAINED": words.EXPLAINED,
        "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "version": __version__,
        "n_bins": BINS,
        "is_table": _is_table,
    }
    return environment
