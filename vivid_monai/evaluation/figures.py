"""Figures of the reports as inline SVG in the page's font and colours, light and dark."""

import io
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from vivid_monai.evaluation.results import Row
from vivid_monai.metrics.statistics import BINS, calibration_bins
from vivid_monai.ums.states import ABSENT, PRESENT

# Colours that stand for variables of the page's style sheet: what is drawn in them changes with the colour scheme.
INK, MUTED, GRID, PAPER = "#010001", "#010002", "#010003", "#010004"
N_SERIES = 8
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1, 1.5)))
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
_NAMES |= {f"#0200{i:02x}": f"s{i}" for i in range(N_SERIES)}

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it is selected, searched and read aloud
    "svg.hashsalt": "vivid",
    "text.parse_math": False,  # a "$" in a label is a dollar
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


def series_colour(index: int) -> str:
    """The colour of an encoder; after N_SERIES they repeat, with other markers."""
    return f"#0200{index % N_SERIES:02x}"


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many CSS pixels, in the page's style, that belongs to no window."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        yield figure


def to_svg(figure: Figure, name: str, title: str, *, classes: Sequence[str] = ()) -> Markup:
    """The figure as an SVG element for an HTML page.

    Args:
        figure: drawn within :func:`drawing`.
        name: unique on the page, letters and digits; the ids within begin with it.
        title: what the figure shows, for those who do not see it; "" where the text beside it says all.
        classes: of the element.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(written.getvalue())
    # A style sheet within would hold for the whole page; style.css has its one rule.
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", " ".join(value for one in root.iter() for value in one.attrib.values())))
    for element in root.iter():
        _follow_the_page(element, name, used)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    spoken = {"role": "img", "aria-label": title} if title else {"aria-hidden": "true"}
    root.attrib |= {**spoken, "class": " ".join(classes)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _follow_the_page(element: ElementTree.Element, name: str, used: set[str]) -> None:
    attributes = element.attrib
    if (key := attributes.pop("id", None)) in used:
        attributes["id"] = f"{name}-{key}"
    for attribute, value in attributes.items():
        if attribute in ("style", "fill", "stroke"):
            value = re.sub("#0[12]00[0-9a-f]{2}", lambda found: f"var(--{_NAMES[found[0]]})", value)
        if attribute == "d" or attribute == "points":
            value = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
        elif attribute in ("x", "y"):
            value = f"{float(value):.1f}"
        value = re.sub(r"url\(#", f"url(#{name}-", value)
        if attribute == f"{{{_XLINK}}}href":
            value = f"#{name}-{value.removeprefix('#')}"
        attributes[attribute] = value
    # Colours of presentation attributes cannot be variables; a style can.
    painted = [f"{key}: {attributes.pop(key)}" for key in ("fill", "stroke") if "var(" in attributes.get(key, "")]
    if painted:
        attributes["style"] = "; ".join([*painted, *([attributes["style"]] if attributes.get("style") else [])])


WIDTH = 400
_LABEL, _MORE, _LINE, _GAP = 18.0, 13.0, 11.0, 9.0  # pixels: a label, its next lines, an encoder, between rows
_WRAP = 36  # letters in a line of a label; the rest of the width is for the note

_BEHIND = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}  # grid lines do not run through words


@dataclass(frozen=True)
class Line:
    """A line of a forest plot: a label with a number for each series that has one; ``strong`` lines stand out."""

    label: str
    estimates: Mapping[int, Row]
    note: str = ""
    strong: bool = False


def forest(
    rows: Sequence[Line], name: str, title: str, *, axis: str, reference: float, limits: tuple[float, float] | None
) -> Markup | None:
    """A plot of intervals, or None where no row has a value.

    Args:
        rows: from top to bottom.
        name, title: as of :func:`to_svg`.
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


def _label(axes: Axes, row: Line, lines: Sequence[str], top: float) -> None:
    (low, high), y = axes.get_xlim(), top + _LABEL - 4
    weight = "bold" if row.strong else "normal"
    for i, line in enumerate(lines):
        axes.text(low, y + _MORE * i, line, ha="left", fontsize=10.5, fontweight=weight, bbox=_BEHIND)
    if row.note:
        axes.text(high, y, row.note, ha="right", fontsize=9, color=MUTED, bbox=_BEHIND)


def _draw(axes: Axes, row: Line, top: float) -> None:
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


def _limits(shown: Sequence[Row], reference: float, limits: tuple[float, float] | None) -> tuple[float, float]:
    ends = [end for e in shown for end in (e.low, e.value, e.high) if end is not None]
    if limits is None:
        reach = 1.12 * max(abs(end - reference) for end in ends) or 0.01
        return reference - reach, reference + reach
    low = math.floor((min([*ends, reference]) - 0.01) * 20) / 20
    high = math.ceil((max([*ends, reference]) + 0.005) * 20) / 20
    return max(limits[0], low), min(limits[1], high)


SIDE = 200
_STEPS = 200  # a curve keeps the points that differ at 1/200, less than a pixel


def roc(scores: Mapping[str, NDArray], states: NDArray, name: str, title: str) -> Markup:
    """True positive rate over false positive rate, a line per encoder and seed.

    Args:
        scores: encoder → probabilities (S, N) of one field.
        states: (N,), with at least one present and one absent.
        name, title: as of :func:`to_svg`.
    """
    counted = (states == PRESENT) | (states == ABSENT)
    truth = states[counted] == PRESENT
    with drawing(SIDE, SIDE) as figure:
        axes = figure.add_axes((0.155, 0.155, 0.825, 0.825))
        _unit_axes(axes, "1 − specificity", "sensitivity")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        for series, seeds in enumerate(scores.values()):
            for seed in seeds:
                false, true, _ = roc_curve(truth, seed[counted])
                axes.plot(
                    *_thinned(false, true),
                    color=series_colour(series),
                    linewidth=1.5 if len(seeds) == 1 else 1.0,
                    linestyle=DASHES[series % len(DASHES)],
                    solid_joinstyle="round",
                )
        return to_svg(figure, name, title, classes=["panel"])


def reliability(bins: Mapping[str, "Bins"], name: str, title: str) -> Markup:
    """Share of present images over the probability, and under it how many images each bin holds.

    Args:
        bins: encoder → :class:`Bins` of one field.
        name, title: as of :func:`to_svg`.
    """
    with drawing(SIDE, SIDE * 1.3) as figure:
        axes = figure.add_axes((0.155, 0.35, 0.825, 0.635))
        _unit_axes(axes, "", "share present")
        axes.set_xticklabels([])
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        below = figure.add_axes((0.155, 0.12, 0.825, 0.19))
        for series, one in enumerate(bins.values()):
            filled, colour = one.counts > 0, series_colour(series)
            axes.plot(
                one.probability[filled],
                one.present[filled],
                color=colour,
                linewidth=1.0,
                linestyle=DASHES[series % len(DASHES)],
                marker=MARKERS[series % len(MARKERS)],
                markersize=3.4,
                clip_on=False,
            )
            below.stairs(one.counts, np.linspace(0, 1, BINS + 1), color=colour, linewidth=1.0)
        below.set_xlim(0, 1)
        below.set_yscale("symlog", linthresh=1)
        top = max(int(one.counts.max()) for one in bins.values())
        below.set_ylim(0, 1.3 * top)
        below.set_yticks([0, top], ["0", f"{top:,}"])
        below.tick_params(axis="y", labelsize=7.5)
        below.minorticks_off()
        below.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        below.set_xlabel("probability", labelpad=1)
        return to_svg(figure, name, title, classes=["panel"])


class Bins:
    """The bins of the calibration error for one field and encoder, all seeds together.

    Attributes:
        counts: int64 (BINS,), images in each bin, summed over the seeds.
        probability: (BINS,), their mean probability; present: (BINS,), the share of them that is present. NaN where
            a bin is empty.
    """

    def __init__(self, scores: NDArray, states: NDArray) -> None:
        """``scores`` (S, N) probabilities, ``states`` (N,)."""
        counted = (states == PRESENT) | (states == ABSENT)
        values = scores[:, counted].ravel()
        truth = np.tile(states[counted] == PRESENT, len(scores))
        bins = calibration_bins(values)
        self.counts = np.bincount(bins, minlength=BINS)
        with np.errstate(invalid="ignore"):
            self.probability = np.bincount(bins, values, BINS) / self.counts
            self.present = np.bincount(bins, truth, BINS) / self.counts


def _unit_axes(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "", "1"])
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, labelpad=1)
    axes.set_ylabel(y, labelpad=-4)


def _thinned(x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    points = np.round(np.stack([x, y], axis=1) * _STEPS)
    kept = np.r_[True, (points[1:] != points[:-1]).any(1)]
    return x[kept], y[kept]


def key(series: int, name: str) -> Markup:
    """The line and marker of an encoder, for legends."""
    with drawing(26, 12) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 26), ylim=(0, 12))
        axes.axis("off")
        style: dict[str, Any] = {"color": series_colour(series), "linestyle": DASHES[series % len(DASHES)]}
        axes.plot([1, 25], [6, 6], linewidth=1.8, **style)
        axes.plot([13], [6], marker=MARKERS[series % len(MARKERS)], markersize=6, color=series_colour(series))
        return to_svg(figure, name, "", classes=["key"])
