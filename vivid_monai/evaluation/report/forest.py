"""Intervals as lines: a row per label, a line per encoder."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup
from matplotlib.axes import Axes

from vivid_monai.evaluation.report.figure import GRID, INK, MARKERS, MUTED, PAPER, drawing, series_colour, to_svg
from vivid_monai.evaluation.results import Estimate

WIDTH = 400
_LABEL, _MORE, _LINE, _GAP = 18.0, 13.0, 11.0, 9.0  # pixels: a label, its next lines, an encoder, between rows
_WRAP = 36  # letters in a line of a label; the rest of the width is for the note

_BEHIND = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}  # grid lines do not run through words


@dataclass(frozen=True)
class Row:
    """One label with an estimate for each series that has one; ``strong`` rows are set apart."""

    label: str
    estimates: Mapping[int, Estimate]
    note: str = ""
    strong: bool = field(default=False)


def forest(
    rows: Sequence[Row], name: str, title: str, *, axis: str, reference: float, limits: tuple[float, float] | None
) -> Markup | None:
    """A plot of intervals, or None where no row has a value.

    Args:
        rows: from top to bottom.
        name, title: as of :func:`~vivid_monai.evaluation.report.figure.to_svg`.
        axis: words under the axis.
        reference: where a vertical line says "nothing": 0.5 for AUROC, 0 for a difference.
        limits: that the axis may not leave; None: it shows every end, and as much on either side of the reference.
    """
    shown = [e for row in rows for e in row.estimates.values() if e.value is not None]
    if not shown:
        return None
    labels = [textwrap.wrap(row.label, _WRAP, max_lines=3, placeholder=" …") or [""] for row in rows]
    heads = [_LABEL + _MORE * (len(lines) - 1) for lines in labels]
    heights = [head + _LINE * max(1, len(row.estimates)) + _GAP for head, row in zip(heads, rows, strict=True)]
    total = sum(heights)
    with drawing(WIDTH, total + 42) as figure:
        axes = figure.add_axes((0.022, 36 / (total + 42), 0.956, total / (total + 42)))
        axes.set_ylim(total, 0)
        axes.set_xlim(*_limits(shown, reference, limits))
        axes.spines[["left"]].set_visible(False)
        axes.set_yticks([])
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_xlabel(axis)
        top = 0.0
        for row, lines, head, height in zip(rows, labels, heads, heights, strict=True):
            _label(axes, row, lines, top)
            _draw(axes, row, top + head)
            top += height
        return to_svg(figure, name, title, classes=["forest"])


def _label(axes: Axes, row: Row, lines: Sequence[str], top: float) -> None:
    (low, high), y = axes.get_xlim(), top + _LABEL - 4
    weight = "bold" if row.strong else "normal"
    for i, line in enumerate(lines):
        axes.text(low, y + _MORE * i, line, ha="left", fontsize=10.5, fontweight=weight, bbox=_BEHIND)
    if row.note:
        axes.text(high, y, row.note, ha="right", fontsize=9, color=MUTED, bbox=_BEHIND)


def _draw(axes: Axes, row: Row, top: float) -> None:
    for line, (series, estimate) in enumerate(row.estimates.items()):
        if estimate.value is None:
            continue
        y, colour = top + _LINE * (line + 0.5), series_colour(series)
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(
            [estimate.value],
            [y],
            marker=MARKERS[series % len(MARKERS)],
            markersize=6.5 if row.strong else 5.5,
            color=colour,
            markeredgecolor=INK if row.strong else colour,
            markeredgewidth=0.8 if row.strong else 0,
            linestyle="",
            clip_on=False,
        )


def _limits(shown: Sequence[Estimate], reference: float, limits: tuple[float, float] | None) -> tuple[float, float]:
    ends = [end for e in shown for end in (e.low, e.value, e.high) if end is not None]
    if limits is None:
        reach = 1.12 * max(abs(end - reference) for end in ends) or 0.01
        return reference - reach, reference + reach
    low = math.floor((min([*ends, reference]) - 0.01) * 20) / 20
    high = math.ceil((max([*ends, reference]) + 0.005) * 20) / 20
    return max(limits[0], low), min(limits[1], high)
