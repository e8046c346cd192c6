"""Figures of the reports as inline SVG in the page's font and colours, light and dark."""

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from vivid_monai.evaluation.results import Row
from vivid_monai.metrics.statistics import BINS, calibration_bins
from vivid_monai.ums.states import ABSENT, PRESENT

# Colours that stand for variables of the page's style sheet: what is drawn in them changes with the colour scheme.
_VARIABLES = {f"#0100{i:02x}": f"var(--{name})" for i, name in enumerate(("ink", "muted", "grid", "paper"))}
_VARIABLES |= {f"#0200{i:02x}": f"var(--s{i})" for i in range(8)}
INK, MUTED, GRID, PAPER, *SERIES = _VARIABLES
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1, 1.5)))

ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it is selected, searched and read aloud
    "text.parse_math": False,  # a "$" in a label is a dollar
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}
in_style = matplotlib.rc_context(_STYLE)
"""Decorates what makes a figure and gives its SVG."""


def figure_of(width: float, height: float) -> Figure:
    """A figure of so many CSS pixels that belongs to no window."""
    return Figure(figsize=(width / 72, height / 72))


def to_svg(figure: Figure, kind: str, name: str, title: str) -> Markup:
    """The figure as an SVG element for an HTML page.

    Args:
        kind: class of the element.
        name: unique on the page: the ids within come from it.
        title: what the figure shows, for those who do not see it; "" where the text beside it says all.
    """
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(written.getvalue())
    for element in root.iter():
        for style in element.findall("{*}style"):
            element.remove(style)  # it would hold for the whole page; style.css has its one rule
        if element.tag.endswith("}g"):
            element.attrib.pop("id", None)  # not hashed, so that every figure has the same, and nothing refers to it
        for attribute, value in element.items():
            if attribute == "style":
                element.set(attribute, re.sub("#0[12]00[0-9a-f]{2}", lambda found: _VARIABLES[found[0]], value))
            elif attribute in ("d", "x", "y"):
                element.set(attribute, re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}", value))
    for attribute in ("width", "height", "version"):
        del root.attrib[attribute]
    root.attrib |= {"class": kind, **({"role": "img", "aria-label": title} if title else {"aria-hidden": "true"})}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _line(series: int) -> dict[str, Any]:
    """The look of an encoder's lines; after as many as there are colours they repeat, with other dashes."""
    return {"color": SERIES[series % len(SERIES)], "linestyle": DASHES[series % len(DASHES)]}


def _marker(series: int) -> str:
    return MARKERS[series % len(MARKERS)]


WIDTH = 400
_LABEL, _MORE, _LINE, _GAP = 18.0, 13.0, 11.0, 9.0  # pixels: a label, its next lines, an encoder, between rows
_WRAP = 36  # letters in a line of a label; the rest of the width is for the note
_BEHIND = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}  # grid lines do not run through words


class Line(NamedTuple):
    """A line of a forest plot: a label with a number of each encoder; ``strong`` lines stand out."""

    label: str
    rows: Sequence[Row]
    note: str = ""
    strong: bool = False


@in_style
def forest(lines: Sequence[Line], name: str, title: str, *, differences: bool = False) -> Markup | None:
    """A plot of intervals, or None where no line has a value: of AUROC, or of paired differences around 0.

    Args:
        lines: from top to bottom.
        name, title: as of :func:`to_svg`.
    """
    shown = [row for line in lines for row in line.rows if row.value is not None]
    if not shown:
        return None
    labels = [textwrap.wrap(line.label, _WRAP, max_lines=3, placeholder=" …") or [""] for line in lines]
    heads = [_LABEL + _MORE * (len(words) - 1) for words in labels]
    heights = [head + _LINE * max(1, len(line.rows)) + _GAP for head, line in zip(heads, lines, strict=True)]
    total = sum(heights)
    reference = 0 if differences else 0.5
    ends = [reference, *(end for row in shown for end in (row.low, row.value, row.high) if end is not None)]
    if differences:
        reach = 1.12 * max(map(abs, ends)) or 0.01
        low, high = -reach, reach
    else:
        low = max(0, math.floor((min(ends) - 0.01) * 20) / 20)
        high = min(1, math.ceil((max(ends) + 0.005) * 20) / 20)
    figure = figure_of(WIDTH, total + 42)
    axes = figure.add_axes((0.022, 36 / (total + 42), 0.956, total / (total + 42)))
    axes.set(xlim=(low, high), ylim=(total, 0), xlabel="difference" if differences else "AUROC", yticks=[])
    axes.spines[["left"]].set_visible(False)
    axes.grid(axis="x", linewidth=0.7)
    axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
    top = 0.0
    for line, words, head, height in zip(lines, labels, heads, heights, strict=True):
        weight, y = "bold" if line.strong else "normal", top + _LABEL - 4
        for i, part in enumerate(words):
            axes.text(low, y + _MORE * i, part, ha="left", fontsize=10.5, fontweight=weight, bbox=_BEHIND)
        if line.note:
            axes.text(high, y, line.note, ha="right", fontsize=9, color=MUTED, bbox=_BEHIND)
        for series, row in enumerate(line.rows):
            y, colour = top + head + _LINE * (series + 0.5), _line(series)["color"]
            if row.has_interval:
                axes.plot(np.array([row.low, row.high]), [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            if row.value is not None:
                edge = {"markeredgecolor": INK, "markeredgewidth": 0.8} if line.strong else {"markeredgewidth": 0}
                look = {"color": colour, "markersize": 6.5 if line.strong else 5.5, **edge}
                axes.plot(row.value, y, _marker(series), clip_on=False, **look)
        top += height
    return to_svg(figure, "forest", name, title)


SIDE = 200
_STEPS = 200  # a curve keeps the points that differ at 1/200, less than a pixel


@in_style
def roc(scores: Sequence[NDArray], states: NDArray, name: str, title: str) -> Markup:
    """True positive rate over false positive rate, a line per encoder and seed.

    Args:
        scores: of each encoder, probabilities (S, N) of one field.
        states: (N,), with at least one present and one absent.
        name, title: as of :func:`to_svg`.
    """
    counted = (states == PRESENT) | (states == ABSENT)
    figure = figure_of(SIDE, SIDE)
    axes = _unit_axes(figure, (0.155, 0.155, 0.825, 0.825), "1 − specificity", "sensitivity")
    for series, seeds in enumerate(scores):
        for seed in seeds:
            points = np.stack(roc_curve(states[counted] == PRESENT, seed[counted])[:2])
            cells = np.round(points * _STEPS)
            points = points[:, np.r_[True, (cells[:, 1:] != cells[:, :-1]).any(0)]]
            axes.plot(*points, **_line(series), linewidth=1.5 if len(seeds) == 1 else 1.0, solid_joinstyle="round")
    return to_svg(figure, "panel", name, title)


@in_style
def reliability(bins: Sequence[tuple[NDArray, NDArray, NDArray]], name: str, title: str) -> Markup:
    """Share of present images over the probability, and under it how many images each bin holds.

    Args:
        bins: of each encoder, of one field, as :func:`reliability_bins` gives them.
        name, title: as of :func:`to_svg`.
    """
    figure = figure_of(SIDE, SIDE * 1.3)
    axes = _unit_axes(figure, (0.155, 0.35, 0.825, 0.635), "", "share present")
    axes.set_xticklabels([])
    below = figure.add_axes((0.155, 0.12, 0.825, 0.19))
    for series, (counts, probability, present) in enumerate(bins):
        filled, look = counts > 0, {**_line(series), "marker": _marker(series), "markersize": 3.4}
        axes.plot(probability[filled], present[filled], linewidth=1.0, clip_on=False, **look)
        below.stairs(counts, np.linspace(0, 1, BINS + 1), color=look["color"], linewidth=1.0)
    top = max(int(counts.max()) for counts, *_ in bins)
    below.set_yscale("symlog", linthresh=1)
    below.set(xlim=(0, 1), ylim=(0, 1.3 * top))
    below.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    below.set_yticks([0, top], ["0", f"{top:,}"])
    below.tick_params(axis="y", labelsize=7.5)
    below.minorticks_off()
    below.set_xlabel("probability", labelpad=1)
    return to_svg(figure, "panel", name, title)


def reliability_bins(scores: NDArray, states: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """The bins of the calibration error for ``scores`` (S, N) of one field and ``states`` (N,), all seeds together.

    Returns:
        (BINS,) each: how many images (int64), their mean probability, the share of them that is present; the two are
        NaN where a bin is empty.
    """
    counted = (states == PRESENT) | (states == ABSENT)
    values = scores[:, counted].ravel()
    truth = np.tile(states[counted] == PRESENT, len(scores))
    bins = calibration_bins(values)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return counts, np.bincount(bins, values, BINS) / counts, np.bincount(bins, truth, BINS) / counts


def _unit_axes(figure: Figure, place: tuple[float, float, float, float], x: str, y: str) -> Axes:
    """Axes from 0 to 1 with the diagonal dashed."""
    axes = figure.add_axes(place)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "", "1"])
    axes.grid()
    axes.set_xlabel(x, labelpad=1)
    axes.set_ylabel(y, labelpad=-4)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
    return axes


@in_style
def curves(lines: Mapping[str, Sequence[tuple[float, float]]], name: str, title: str) -> Markup:
    """Values over the steps of a run, a line each in the order of :func:`key`.

    Args:
        lines: by their names, points (step, value).
        name, title: as of :func:`to_svg`.
    """
    figure = figure_of(1.6 * SIDE, SIDE)
    axes = figure.add_axes((0.13, 0.155, 0.85, 0.825))
    axes.grid()
    axes.set_xlabel("step", labelpad=1)
    for series, points in enumerate(lines.values()):
        look: dict[str, Any] = {"marker": _marker(series), "markersize": 3.4 if len(points) < 40 else 0}
        axes.plot(*zip(*points, strict=True), **_line(series), **look, linewidth=1.3)
    return to_svg(figure, "curve", name, title)


@in_style
def key(series: int, name: str) -> Markup:
    """The line and marker of an encoder, for legends."""
    figure = figure_of(26, 12)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 26), ylim=(0, 12))
    axes.axis("off")
    axes.plot([1, 25], [6, 6], linewidth=1.8, **_line(series))
    axes.plot(13, 6, _marker(series), markersize=6, color=_line(series)["color"])
    return to_svg(figure, "key", name, "")
