"""Metrics under many sets of patient weights at once, as the bootstrap needs them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vivid_monai.ums.states import ABSENT, PRESENT

Statistic = Callable[[NDArray[np.integer]], NDArray[np.float64]]
BINS = 15
"""Bins of equal width of the calibration error, as in Guo et al. (ICML 2017)."""


def f1(probabilities: NDArray, states: NDArray, groups: NDArray, threshold: float) -> Statistic:
    """F1 = 2 TP / (2 TP + FP + FN), an image being called present from ``threshold`` on; (N,) each.

    NaN without an image of either class, or without a threshold (NaN).
    """
    truth, counted, probabilities = _answered(probabilities, states)
    called = probabilities >= threshold
    hit, calls = truth & called, called & counted
    sums = _per_patient([hit, calls, truth, counted & ~truth], groups)

    def statistic(weights: NDArray[np.integer]) -> NDArray[np.float64]:
        hits, positive, present, absent = _dot(weights, sums).T
        defined = (present > 0) & (absent > 0) & (not np.isnan(threshold))
        return _ratio(2 * hits, positive + present, defined)

    return statistic


def brier(probabilities: NDArray, states: NDArray, groups: NDArray) -> Statistic:
    """Mean squared distance of the probability from 1 (present) or 0 (absent); (N,) each (Brier 1950)."""
    truth, counted, probabilities = _answered(probabilities, states)
    sums = _per_patient([counted * (probabilities - truth) ** 2, counted], groups)

    def statistic(weights: NDArray[np.integer]) -> NDArray[np.float64]:
        error, n = _dot(weights, sums).T
        return _ratio(error, n, n > 0)

    return statistic


def ece(probabilities: NDArray, states: NDArray, groups: NDArray) -> Statistic:
    """Expected calibration error: Σ_b n_b/n · |share of present in bin b − mean probability in bin b|; (N,) each.

    Bins of equal width, closed at their lower end; the last one holds 1 too (Naeini et al., AAAI 2015).
    """
    truth, counted, probabilities = _answered(probabilities, states)
    bins = calibration_bins(probabilities)
    inside = (bins[:, None] == np.arange(BINS)) & counted[:, None]
    gap = _per_patient([*(inside * (truth - probabilities)[:, None]).T], groups)
    number = _per_patient([counted], groups)

    def statistic(weights: NDArray[np.integer]) -> NDArray[np.float64]:
        n = _dot(weights, number)[:, 0]
        return _ratio(np.abs(_dot(weights, gap)).sum(1), n, n > 0)

    return statistic


def accuracy(predicted: NDArray, truth: NDArray, groups: NDArray) -> Statistic:
    """Share of the images whose class is predicted right; class numbers (N,) each."""
    sums = _per_patient([predicted == truth, np.ones(len(truth))], groups)

    def statistic(weights: NDArray[np.integer]) -> NDArray[np.float64]:
        right, n = _dot(weights, sums).T
        return _ratio(right, n, n > 0)

    return statistic


def balanced_accuracy(predicted: NDArray, truth: NDArray, groups: NDArray) -> Statistic:
    """Mean over the classes that occur of the share of their images that is predicted right; class numbers (N,)."""
    classes = np.unique(truth)
    of_class = truth[:, None] == classes
    right = _per_patient([*(of_class & (predicted == truth)[:, None]).T], groups)
    number = _per_patient([*of_class.T], groups)

    def statistic(weights: NDArray[np.integer]) -> NDArray[np.float64]:
        n = _dot(weights, number)
        recall = _ratio(_dot(weights, right), n, n > 0)
        return _ratio(np.nansum(recall, 1), (n > 0).sum(1), (n > 0).any(1))

    return statistic


def calibration_bins(probabilities: NDArray) -> NDArray[np.int64]:
    """The bin of each probability, 0 to ``BINS`` − 1."""
    return np.minimum((np.asarray(probabilities) * BINS).astype(np.int64), BINS - 1)


def _answered(probabilities: NDArray, states: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """What is present, what counts, and the probabilities with 0 for what does not count: it may be anything, even
    NaN, and must not spoil the sums."""
    truth = states == PRESENT
    counted = truth | (states == ABSENT)
    return truth, counted, np.where(counted, probabilities, 0.0)


def _per_patient(columns: list[NDArray], groups: NDArray) -> NDArray[np.float64]:
    """Sums over each patient's images, (patients, columns)."""
    n = int(groups.max()) + 1 if len(groups) else 0
    return np.stack([np.bincount(groups, weights=column, minlength=n) for column in columns], axis=1)


def _dot(weights: NDArray[np.integer], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return weights.astype(np.float64) @ sums


def _ratio(top: NDArray, bottom: NDArray, defined: NDArray | np.bool) -> NDArray[np.float64]:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=defined)


# Resamples × images in work at once: 8 MiB per float64 array, so that memory stays small whatever the test set.
_BLOCK = 1 << 20


class RankedField:
    """The counted images of one field, sorted by score once.

    Every metric takes patient weights (R, patients) and returns (R,); NaN under weights that leave a class empty. A
    patient of weight w counts as w patients with the same images. Equal scores share one threshold.
    """

    def __init__(self, scores: NDArray[np.float64], states: NDArray[np.int64], group_ids: NDArray[np.int64]) -> None:
        """``scores``, ``states`` and ``group_ids`` (the patient of each image, from 0): (N,)."""
        counted = np.flatnonzero((states == PRESENT) | (states == ABSENT))
        order = counted[np.argsort(scores[counted], kind="stable")]
        ordered = scores[order]
        self.present = (states[order] == PRESENT).astype(np.float64)
        self.groups = group_ids[order]
        self.ties = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order

    def auroc(self, weights: NDArray[np.integer]) -> NDArray[np.float64]:
        """Area under the ROC curve, the weighted Mann–Whitney statistic:
        Σ_{p present} Σ_{n absent} w_p w_n ([s_p > s_n] + ½ [s_p = s_n]) / (Σ w_p · Σ w_n)."""
        return self._in_blocks(weights, _auroc)

    def average_precision(self, weights: NDArray[np.integer]) -> NDArray[np.float64]:
        """Average precision: the precision at every threshold, weighted by the recall it adds."""
        return self._in_blocks(weights, _average_precision)

    def _in_blocks(self, weights: NDArray[np.integer], metric: Callable[..., NDArray]) -> NDArray[np.float64]:
        out = np.full(len(weights), np.nan)
        if not len(self.groups):
            return out
        step = max(1, _BLOCK // len(self.groups))
        for start in range(0, len(weights), step):
            image_weights = np.take(weights[start : start + step], self.groups, axis=1).astype(np.float64)
            present = image_weights * self.present
            absent = image_weights - present
            if len(self.ties) < len(self.groups):
                present = np.add.reduceat(present, self.ties, axis=1)
                absent = np.add.reduceat(absent, self.ties, axis=1)
            out[start : start + step] = metric(present, absent)
        return out


def _auroc(present: NDArray[np.float64], absent: NDArray[np.float64]) -> NDArray[np.float64]:
    below = np.cumsum(absent, axis=1) - 0.5 * absent
    pairs = present.sum(axis=1) * absent.sum(axis=1)
    wins = np.einsum("rn,rn->r", present, below)
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _average_precision(present: NDArray[np.float64], absent: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.cumsum(present[:, ::-1], axis=1)
    called = found + np.cumsum(absent[:, ::-1], axis=1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    total = found[:, -1]
    area = np.einsum("rn,rn->r", present[:, ::-1], precision)
    both = (total > 0) & (called[:, -1] > total)
    return np.divide(area, total, out=np.full(len(total), np.nan), where=both)
