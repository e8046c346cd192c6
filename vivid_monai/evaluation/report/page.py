"""The page of one run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from vivid_monai.evaluation.report.attention import Example, draw_examples
from vivid_monai.evaluation.report.curves import Bins, reliability, roc
from vivid_monai.evaluation.report.forest import Row, forest
from vivid_monai.evaluation.report.render import render
from vivid_monai.evaluation.report.run_folder import RunFolder
from vivid_monai.evaluation.report.table import COLUMNS, metric_rows, write_table
from vivid_monai.evaluation.report.words import ALL_METRICS, estimate_words, headline, interval_words
from vivid_monai.evaluation.results import Difference, Results
from vivid_monai.ums.states import PRESENT


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
    """An example image with what is known and said of it."""

    drawing: Example
    present: list[str] | None
    said: list[tuple[str, float]]


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
    panels, without = field_panels(run)
    render(
        "report.html.j2",
        page,
        title=f"{results.task}: evaluation",
        r=results,
        headline=headline(results),
        intervals=interval_words(results),
        forest=forest_of_fields(results),
        differences=forest_of_differences(results.differences),
        panels=panels,
        without_curves=without,
        examples=examples_of(run),
        has_examples=run.examples is not None,
        has_maps=run.examples is not None and run.examples.maps is not None,
    )
    write_table(folder / "metrics.csv", COLUMNS, metric_rows(results))
    return page


def forest_of_fields(results: Results, *, counts: bool = True) -> Markup | None:
    """AUROC of every field, and their mean first; with the numbers of test images where all encoders have the same."""
    encoders = list(enumerate(results.encoders.values()))
    rows = [
        Row(
            f"Macro average of {len(results.macro_fields)}",
            {i: encoder.macro["auroc"] for i, encoder in encoders},
            strong=True,
        )
    ]
    test = results.test
    for field in results.fields:
        mark = " *" if field in results.excluded else ""
        note = f"{test['n_present'][field]:,} present, {test['n_absent'][field]:,} absent" if counts else ""
        rows.append(Row(field + mark, {i: encoder.fields[field]["auroc"] for i, encoder in encoders}, note))
    told = "; ".join(f"{name} {estimate_words(e.macro['auroc'])}" for name, e in results.encoders.items())
    return forest(
        rows,
        "forest",
        f"AUROC with intervals for {len(results.fields)} fields. Macro average: {told}. The table has every value.",
        axis="AUROC",
        reference=0.5,
        limits=(0, 1),
    )


def forest_of_differences(differences: list[Difference]) -> Markup | None:
    """Paired differences around 0."""
    rows = []
    for one in differences:
        name = "accuracy" if one.metric == "accuracy" else f"macro {ALL_METRICS[one.metric]}"
        rows.append(Row(f"{one.first} − {one.second}", {0: one.estimate}, name))
    told = "; ".join(f"{row.label}, {row.note}: {estimate_words(row.estimates[0])}" for row in rows)
    return forest(rows, "differences", f"Paired differences. {told}.", axis="difference", reference=0, limits=None)


def field_panels(run: RunFolder) -> tuple[list[Panel], dict[str, str]]:
    """Curves of every field that has both kinds of image; the other fields with the reason."""
    panels, without = [], {}
    test = run.results.test
    for f, field in enumerate(run.results.fields):
        present, absent = test["n_present"][field], test["n_absent"][field]
        if not (present and absent):
            without[field] = f"{present:,} present, {absent:,} absent"
            continue
        scores, states = run.column(field)
        bins = {name: Bins(one, states) for name, one in scores.items()}
        told = {
            metric: "; ".join(
                f"{name} {estimate_words(encoder.fields[field][metric])}"
                for name, encoder in run.results.encoders.items()
            )
            for metric in ("auroc", "ece")
        }
        panels.append(
            Panel(
                field,
                present,
                absent,
                roc(scores, states, f"roc{f}", f"ROC curves of {field}. AUROC: {told['auroc']}."),
                reliability(bins, f"rel{f}", f"Reliability of {field}. Calibration error: {told['ece']}."),
                bins,
            )
        )
    return panels, without


def examples_of(run: RunFolder, most: int = 4) -> list[Shown]:
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
        present = [
            name for name, state in zip(predictions.fields, predictions.states[row], strict=True) if state == PRESENT
        ]
        highest = np.argsort(-scores[row], kind="stable")[:most]
        shown.append(Shown(drawing, present, [(predictions.fields[f], float(scores[row, f])) for f in highest]))
    return shown
