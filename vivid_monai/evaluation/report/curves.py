"""ROC and reliability curves of one field, small, for all encoders and seeds."""

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from vivid_monai.evaluation.report.figure import DASHES, GRID, MARKERS, MUTED, drawing, series_colour, to_svg
from vivid_monai.metrics.statistics import BINS, calibration_bins
from vivid_monai.ums.states import ABSENT, PRESENT

SIDE = 200
_GRID = 200  # a curve keeps the points that differ at 1/200, less than a pixel


def roc(scores: Mapping[str, NDArray], states: NDArray, name: str, title: str) -> Markup:
    """True positive rate over false positive rate, a line per encoder and seed.

    Args:
        scores: encoder → probabilities (S, N) of one field.
        states: (N,), with at least one present and one absent.
        name, title: as of :func:`~vivid_monai.evaluation.report.figure.to_svg`.
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
        name, title: as of :func:`~vivid_monai.evaluation.report.figure.to_svg`.
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
    points = np.round(np.stack([x, y], axis=1) * _GRID)
    kept = np.r_[True, (points[1:] != points[:-1]).any(1)]
    return x[kept], y[kept]
