"""HTML reports: of one run, and of several compared."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Self

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vivid_monai import __version__
from vivid_monai.errors import VividError
from vivid_monai.evaluation import format as words
from vivid_monai.evaluation.examples import Drawing, Examples, draw_examples
from vivid_monai.evaluation.figures import Bins, Line, forest, key, reliability, roc
from vivid_monai.evaluation.measure import PAIRED, difference_rows, macro_rows, resample
from vivid_monai.evaluation.results import (
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
from vivid_monai.metrics.intervals import Patients
from vivid_monai.metrics.masked import masked_auroc
from vivid_monai.metrics.statistics import BINS
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.states import PRESENT

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run that a page is made of. ``examples``: None where the run has none."""

    path: Path
    results: Results
    predictions: Predictions
    examples: Examples | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read results.json, predictions.csv and, where it is, examples.npz.

        Raises:
            VividError: one of the first two is missing or broken; they are not of one run.
        """
        results, predictions = Results.load(path / "results.json"), read_predictions(path / "predictions.csv")
        _check_one_run(path, results, predictions)
        examples = path / "examples.npz"
        return cls(path, results, predictions, Examples.load(examples) if examples.is_file() else None)

    def row_of(self, image: str) -> int | None:
        """The row of predictions.csv that is of an image, by its id; None where there is none.

        A transfer task puts the data set before the id, since two hospitals may use one id.
        """
        names = {str(name): row for row, name in enumerate(self.predictions.ids)}
        dataset = self.results.run.get("data", {}).get("dataset", "")
        return names.get(image, names.get(f"{dataset}/{image}"))


def _check_one_run(path: Path, results: Results, predictions: Predictions) -> None:
    pairs = {
        "fields": (results.fields, predictions.fields),
        "encoders": (list(results.encoders), list(predictions.scores)),
        "seeds": (results.seeds, predictions.seeds),
        "test images": (results.test["images_sha256"], images_digest(predictions.ids)),
    }
    wrong = [what for what, (stored, found) in pairs.items() if stored != found]
    if not wrong:
        for name, scores in predictions.scores.items():
            values = np.mean([masked_auroc(seed, predictions.states) for seed in scores], axis=0)
            stored = [results.get("auroc", field, name).value for field in results.fields]
            same = np.isclose(np.array(stored, float), values, rtol=0, atol=1e-6, equal_nan=True)
            wrong += [f"AUROC of {field} ({name})" for field, ok in zip(results.fields, same, strict=True) if not ok]
    if wrong:
        raise VividError(
            f"{path}: results.json and predictions.csv are not of one run, they differ in {', '.join(wrong[:4])}; "
            "run the evaluation again"
        )


@dataclass(frozen=True)
class Panel:
    """The curves of one field."""

    field: str
    n_present: int
    n_absent: int
    roc: Markup
    reliability: Markup
    bins: dict[str, Bins]


@dataclass(frozen=True)
class Shown:
    """An example image with its findings and the highest probabilities; ``present`` None: not in predictions.csv."""

    drawing: Drawing
    present: list[str] | None
    probabilities: list[tuple[str, float]]


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
    run = RunFolder.load(folder)
    results = run.results
    page = out or folder / "report.html"
    panels, without = _panels(run)
    _render(
        "report.html.j2",
        page,
        title=f"{results.task}: evaluation",
        r=results,
        headline=words.headline(results),
        intervals=words.interval_words(results),
        forest=_forest_of_fields(results),
        differences=_forest_of_differences(results.differences),
        panels=panels,
        without_curves=without,
        examples=_examples(run),
        has_examples=run.examples is not None,
        has_maps=run.examples is not None and run.examples.maps is not None,
    )
    write_csv(folder / "metrics.csv", CSV_COLUMNS, csv_rows(results))
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
            as :meth:`RunFolder.load`.
    """
    runs = _load(folders, out)
    apart = _why_apart(list(runs.values()))
    merged = _merge(runs, paired=apart is None)
    panels, without = _panels(merged) if apart is None else ([], {})
    results = merged.results
    _render(
        "comparison.html.j2",
        out,
        title=f"{results.task}: {len(runs)} runs",
        r=results,
        runs={label: run.results for label, run in runs.items()},
        folders={label: str(run.path) for label, run in runs.items()},
        apart=apart,
        headline=words.headline(results) if apart is None else [],
        intervals=words.interval_words(results, seeds=False),
        forest=_forest_of_fields(results, counts=apart is None),
        differences=_forest_of_differences(results.differences),
        panels=panels,
        without_curves=without,
    )
    of_runs = {label: replace(run.results, rows=_values(run.results)) for label, run in runs.items()}
    rows = [(label, *row) for label, one in of_runs.items() for row in csv_rows(one)]
    rows += [("", *row) for row in csv_rows(replace(results, rows=results.differences))]
    write_csv(out.with_suffix(".csv"), ("run", *CSV_COLUMNS), rows)
    content = {
        "format": "vivid-comparison",
        "version": 2,
        "side_by_side": apart,
        "macro_fields": results.macro_fields,
        "macro": [row._asdict() for row in results.rows if row.field == MACRO and row.seed is None and not row.minus],
        "differences": [row._asdict() for row in results.differences],
        "runs": {label: run.results.to_dict() for label, run in runs.items()},
    }
    with whole_file(out.with_suffix(".json")) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return out


def _load(folders: Sequence[Path], out: Path) -> dict[str, RunFolder]:
    if out.suffix != ".html":
        raise VividError(f"{out}: a comparison is a page that ends in .html; .csv and .json are written beside it")
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < 2 or len(set(paths)) < len(paths):
        raise VividError("a comparison needs at least two runs, each named once")
    depth = 1  # as much of the end of each path as distinguishes them
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    runs = {"/".join(path.parts[-depth:]): RunFolder.load(Path(f)) for path, f in zip(paths, folders, strict=True)}
    if len(kinds := {run.results.kind for run in runs.values()}) > 1:
        raise VividError(
            f"runs of {' and of '.join(sorted(kinds))} cannot be compared: their numbers mean other things"
        )
    return runs


def _why_apart(runs: Sequence[RunFolder]) -> str | None:
    """Why numbers of these runs cannot be subtracted; None where they can."""
    first, *others = runs
    if any(run.results.test["images_sha256"] != first.results.test["images_sha256"] for run in others):
        return "The runs were tested on other images"
    a = first.predictions
    for run in others:
        b = run.predictions
        shared = [field for field in a.fields if field in b.fields]
        if not np.array_equal(a.patients, b.patients):
            return "The runs have the same test images, but of other patients"
        if not np.array_equal(a.select(shared).states, b.select(shared).states):
            return "The runs have the same test images, but with other labels"
    return None


def _merge(runs: Mapping[str, RunFolder], *, paired: bool) -> RunFolder:
    """All encoders in one, named run: encoder, with the fields that the runs share.

    A macro average over other fields than a run's own has an interval where the images are the same.
    """
    of_runs = {label: run.results for label, run in runs.items()}
    one, first = next(iter(runs.values())), next(iter(of_runs.values()))
    fields = [name for name in first.fields if all(name in r.fields for r in of_runs.values())]
    if not fields:
        raise VividError(f"{' and '.join(runs)} have no field in common, so there is nothing to compare")
    macro_fields = [name for name in fields if all(name in r.macro_fields for r in of_runs.values())]
    rows: list[Row] = []
    encoders: dict[str, Any] = {}
    confusion: dict[str, list[list[float]]] = {}
    scores: dict[str, NDArray] = {}
    excluded: dict[str, str] = {}
    for label, r in of_runs.items():
        excluded |= {
            name: "; ".join(dict.fromkeys([*excluded.get(name, "").split("; "), reason])).removeprefix("; ")
            for name, reason in r.excluded.items()
            if name in fields and name not in macro_fields
        }
        kept = {*r.fields} & {*fields} | {"(all)"} | ({MACRO} if {*macro_fields} == {*r.macro_fields} else set())
        rows += [row._replace(encoder=f"{label}: {row.encoder}") for row in _values(r) if row.field in kept]
        if MACRO not in kept:
            rows += [_mean(r, macro_fields, metric, name, label) for name in r.encoders for metric in METRICS]
        encoders |= {f"{label}: {name}": encoder for name, encoder in r.encoders.items()}
        confusion |= {f"{label}: {name}": matrix for name, matrix in r.confusion.items()}
        scores |= {f"{label}: {name}": s for name, s in runs[label].predictions.select(fields).scores.items()}
    predictions = replace(one.predictions.select(fields), scores=scores)
    if paired:
        exclusive = first.kind == "classes" and all(r.fields == fields for r in of_runs.values())
        rows = _with_differences(rows, predictions, [fields.index(f) for f in macro_fields], exclusive, first.intervals)
    results = replace(
        first,
        task=" and ".join(dict.fromkeys(r.task for r in of_runs.values())),
        fields=fields,
        macro_fields=macro_fields,
        excluded={name: excluded[name] for name in fields if name in excluded},
        encoders=encoders,
        rows=rows,
        confusion=confusion,
        warnings=[f"{label}: {warning}" for label, r in of_runs.items() for warning in r.warnings],
    )
    return RunFolder(one.path, results, predictions)


def _values(results: Results) -> list[Row]:
    return [row for row in results.rows if not row.minus]


def _mean(results: Results, fields: Sequence[str], metric: str, name: str, label: str) -> Row:
    values = [results.get(metric, field, name).value for field in fields]
    defined = [value for value in values if value is not None]
    mean = sum(defined) / len(defined) if defined and len(defined) == len(values) else None
    return Row(metric, MACRO, f"{label}: {name}", None, mean, n=results.test["n_images"])


def _with_differences(
    rows: list[Row], predictions: Predictions, kept: list[int], exclusive: bool, how: Mapping[str, Any]
) -> list[Row]:
    """The rows with paired differences, and with the intervals of macro averages that no run has."""
    patients = Patients(predictions.patients, n_resamples=how["resamples"], seed=how["seed"])
    metrics = PAIRED if kept else ()
    n = len(predictions.ids)
    resampled = {
        name: resample(scores, predictions.states, patients, metrics, exclusive=exclusive)
        for name, scores in predictions.scores.items()
    }
    measured = {
        (row.encoder, row.metric): row
        for name, runs in resampled.items()
        for row in macro_rows(name, {metric: runs[metric] for metric in metrics}, kept, n)
    }
    macro = {row.encoder: row for row in rows if (row.metric, row.field, row.seed) == ("auroc", MACRO, None)}
    rows = [
        measured.get((row.encoder, row.metric), row)
        if (row.field, row.seed) == (MACRO, None) and macro[row.encoder].low is None
        else row
        for row in rows
    ]
    return rows + difference_rows(resampled, kept, n)


def _forest_of_fields(results: Results, *, counts: bool = True) -> Markup | None:
    """AUROC of every field, and their mean first; with the numbers of test images where all encoders have the same."""

    def aurocs(field: str) -> dict[int, Row]:
        return {i: results.get("auroc", field, name) for i, name in enumerate(results.encoders)}

    lines = [Line(f"Macro average of {len(results.macro_fields)}", aurocs(MACRO), strong=True)]
    test = results.test
    for field in results.fields:
        mark = " *" if field in results.excluded else ""
        note = f"{test['n_present'][field]:,} present, {test['n_absent'][field]:,} absent" if counts else ""
        lines.append(Line(field + mark, aurocs(field), note))
    macro = _of_all(results, "auroc", MACRO)
    return forest(
        lines,
        "forest",
        f"AUROC with intervals for {len(results.fields)} fields. Macro average: {macro}. The table has every value.",
        axis="AUROC",
        reference=0.5,
        limits=(0, 1),
    )


def _forest_of_differences(rows: list[Row]) -> Markup | None:
    """Paired differences around 0."""
    lines = [Line(f"{row.encoder} − {row.minus}", {0: row}, words.metric_name(row)) for row in rows]
    values = "; ".join(f"{line.label}, {line.note}: {words.estimate(line.estimates[0])}" for line in lines)
    return forest(lines, "differences", f"Paired differences. {values}.", axis="difference", reference=0, limits=None)


def _panels(run: RunFolder) -> tuple[list[Panel], dict[str, str]]:
    """Curves of every field that has both kinds of image; the other fields with the reason."""
    panels, without = [], {}
    results, predictions = run.results, run.predictions
    for f, field in enumerate(results.fields):
        present, absent = results.test["n_present"][field], results.test["n_absent"][field]
        if not (present and absent):
            without[field] = f"{present:,} present, {absent:,} absent"
            continue
        states = predictions.states[:, f]
        scores: dict[str, NDArray] = {name: one[:, :, f] for name, one in predictions.scores.items()}
        bins = {name: Bins(one, states) for name, one in scores.items()}
        of_roc = f"ROC curves of {field}. AUROC: {_of_all(results, 'auroc', field)}."
        of_bins = f"Reliability of {field}. Calibration error: {_of_all(results, 'ece', field)}."
        curves = roc(scores, states, f"roc{f}", of_roc), reliability(bins, f"rel{f}", of_bins)
        panels.append(Panel(field, present, absent, *curves, bins))
    return panels, without


def _of_all(results: Results, metric: str, field: str) -> str:
    return "; ".join(f"{name} {words.estimate(results.get(metric, field, name))}" for name in results.encoders)


def _examples(run: RunFolder, most: int = 4) -> list[Shown]:
    """The example images with their findings and the highest probabilities of the first encoder, mean over seeds."""
    if run.examples is None:
        return []
    predictions, shown = run.predictions, []
    scores = next(iter(predictions.scores.values())).mean(axis=0)
    for drawing in draw_examples(run.examples):
        row = run.row_of(drawing.id)
        if row is None:
            shown.append(Shown(drawing, None, []))
            continue
        present = [f for f, state in zip(predictions.fields, predictions.states[row], strict=True) if state == PRESENT]
        highest = np.argsort(-scores[row], kind="stable")[:most]
        shown.append(Shown(drawing, present, [(predictions.fields[f], float(scores[row, f])) for f in highest]))
    return shown


def _render(template: str, path: Path, **context: Any) -> None:
    """Write a page, whole or not at all. What goes into a template is escaped, unless this package drew it; a name that
    is missing is an error, not an empty place."""
    numbers = count()
    context["key"] = lambda series: key(series, f"key{next(numbers)}")
    with whole_file(path) as part:
        part.write_text(_environment().get_template(template).render(**context), encoding="utf-8")


def _is_table(value: Mapping[str, Any]) -> bool:
    """Whether every part of a mapping has the same names for one number or word each, so that it is a table."""
    rows = list(value.values())
    return all(isinstance(row, Mapping) and row and row.keys() == rows[0].keys() for row in rows) and not any(
        isinstance(cell, Mapping | list | tuple) for row in rows for cell in row.values()
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "signed": words.signed,
        "count": words.count,
        "interval": words.interval,
        "difference": words.difference_words,
        "metric_name": words.metric_name,
        "tidy": words.tidy,
    }
    environment.globals |= {
        "METRICS": {metric: words.NAMES[metric] for metric in METRICS},
        "CLASS_METRICS": {metric: words.NAMES[metric] for metric in CLASS_METRICS},
        "EXPLAINED": words.EXPLAINED,
        "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "version": __version__,
        "n_bins": BINS,
        "is_table": _is_table,
        "besides": lambda value, name: {key: one for key, one in value.items() if key != name},
    }
    return environment
