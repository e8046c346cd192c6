"""Metrics under many sets of patient weights at once, as the bootstrap needs them.

Each function takes arrays (N,) of images, the patient of each (``groups``, from 0) among them, and returns a statistic:
patient weights (R, patients) → (R,), NaN where the metric is not defined. A patient of weight w counts as w patients
with the same images. Only present and absent images count, whatever the probabilities of the others.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vivid_monai.ums.states import ABSENT, PRESENT

Statistic = Callable[[NDArray[np.integer]], NDArray[np.float64]]
BINS = 15
"""Bins of equal width of the calibration error, as in Guo et al. (ICML 2017)."""
_BLOCK = 1 << 20
"""Resamples × images in work at once: 8 MiB per float64 array, so that memory stays small whatever the test set."""


def auroc(scores: NDArray, states: NDArray, groups: NDArray) -> Statistic:
    """Area under the ROC curve, the weighted Mann–Whitney statistic:
    Σ_{p present} Σ_{n absent} w_p w_n ([s_p > s_n] + ½ [s_p = s_n]) / (Σ w_p · Σ w_n)."""

    def area(present: NDArray, absent: NDArray) -> NDArray[np.float64]:
        below = np.cumsum(absent, axis=1) - 0.5 * absent
        return _ratio(np.einsum("rn,rn->r", present, below), present.sum(axis=1) * absent.sum(axis=1))

    return _of_ranks(scores, states, groups, area)


def ap(scores: NDArray, states: NDArray, groups: NDArray) -> Statistic:
    """Average precision: the precision at every threshold, weighted by the recall it adds."""

    def area(present: NDArray, absent: NDArray) -> NDArray[np.float64]:
        found = np.cumsum(present[:, ::-1], axis=1)
        called = found + np.cumsum(absent[:, ::-1], axis=1)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        total = found[:, -1]
        return _ratio(np.einsum("rn,rn->r", present[:, ::-1], precision), total, called[:, -1] > total)

    return _of_ranks(scores, states, groups, area)


def f1(probabilities: NDArray, states: NDArray, groups: NDArray, threshold: float) -> Statistic:
    """F1 = 2 TP / (2 TP + FP + FN), an image being called present from ``threshold`` on.

    NaN without an image of either class, or without a threshold (NaN).
    """
    truth, counted, probabilities = _answered(probabilities, states)
    called = probabilities >= threshold

    def score(sums: NDArray) -> NDArray[np.float64]:
        hits, positive, present, absent = sums.T
        return _ratio(2 * hits, positive + present, (present > 0) & (absent > 0) & (not np.isnan(threshold)))

    return _of_sums([truth & called, called & counted, truth, counted & ~truth], groups, score)


def brier(probabilities: NDArray, states: NDArray, groups: NDArray) -> Statistic:
    """Mean squared distance of the probability from 1 (present) or 0 (absent) (Brier 1950)."""
    truth, counted, probabilities = _answered(probabilities, states)
    return _of_sums([counted * (probabilities - truth) ** 2, counted], groups, lambda sums: _ratio(*sums.T))


def ece(probabilities: NDArray, states: NDArray, groups: NDArray) -> Statistic:
    """Expected calibration error: Σ_b n_b/n · |share of present in bin b − mean probability in bin b|.

    Bins of equal width, closed at their lower end; the last one holds 1 too (Naeini et al., AAAI 2015).
    """
    truth, counted, probabilities = _answered(probabilities, states)
    inside = (calibration_bins(probabilities)[:, None] == np.arange(BINS)) & counted[:, None]
    gaps = inside * (truth - probabilities)[:, None]
    return _of_sums([*gaps.T, counted], groups, lambda sums: _ratio(np.abs(sums[:, :-1]).sum(1), sums[:, -1]))


def accuracy(predicted: NDArray, truth: NDArray, groups: NDArray) -> Statistic:
    """Share of the images whose class is predicted right; class numbers."""
    return _of_sums([predicted == truth, np.ones(len(truth))], groups, lambda sums: _ratio(*sums.T))


def balanced_accuracy(predicted: NDArray, truth: NDArray, groups: NDArray) -> Statistic:
    """Mean over the classes that occur of the share of their images that is predicted right; class numbers."""
    of_class = truth[:, None] == np.unique(truth)
    right = of_class & (predicted == truth)[:, None]

    def score(sums: NDArray) -> NDArray[np.float64]:
        right, n = np.split(sums, 2, axis=1)
        return _ratio(np.nansum(_ratio(right, n), 1), (n > 0).sum(1))

    return _of_sums([*right.T, *of_class.T], groups, score)


def calibration_bins(probabilities: NDArray) -> NDArray[np.int64]:
    """The bin of each probability, 0 to ``BINS`` − 1."""
    return np.minimum((np.asarray(probabilities) * BINS).astype(np.int64), BINS - 1)


def _answered(probabilities: NDArray, states: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """What is present, what counts, and the probabilities with 0 for what does not count: it may be anything, even
    NaN, and must not spoil the sums."""
    truth = states == PRESENT
    counted = truth | (states == ABSENT)
    return truth, counted, np.where(counted, probabilities, 0.0)


def _of_sums(columns: Sequence[NDArray], groups: NDArray, metric: Callable[[NDArray], NDArray]) -> Statistic:
    """A metric of the weighted sums (R, columns) over the images."""
    n = int(groups.max()) + 1 if len(groups) else 0
    of_patients = np.stack([np.bincount(groups, weights=column, minlength=n) for column in columns], axis=1)
    return lambda weights: metric(weights.astype(np.float64) @ of_patients)


def _of_ranks(
    scores: NDArray, states: NDArray, groups: NDArray, metric: Callable[[NDArray, NDArray], NDArray]
) -> Statistic:
    """A metric of the weights (R, thresholds) of present and of absent, by rising score; equal scores share a
    threshold. The images are sorted once."""
    counted = np.flatnonzero((states == PRESENT) | (states == ABSENT))
    order = counted[np.argsort(scores[counted], kind="stable")]
    ordered, truth, patients = scores[order], (states[order] == PRESENT).astype(np.float64), groups[order]
    ties = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    def statistic(weights: NDArray[np.integer]) -> NDArray[np.float64]:
        out = np.full(len(weights), np.nan)
        if not len(order):
            return out
        step = max(1, _BLOCK // len(order))
        for start in range(0, len(weights), step):
            of_images = np.take(weights[start : start + step], patients, axis=1).astype(np.float64)
            present = of_images * truth
            absent = of_images - present
            if len(ties) < len(order):
                present, absent = (np.add.reduceat(part, ties, axis=1) for part in (present, absent))
            out[start : start + step] = metric(present, absent)
        return out

    return statistic


def _ratio(top: NDArray, bottom: NDArray, defined: NDArray | bool = True) -> NDArray[np.float64]:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=(bottom > 0) & defined)
