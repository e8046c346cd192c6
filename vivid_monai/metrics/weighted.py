"""Ranking metrics of one field under many sets of patient weights at once: the core of the bootstrap."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vivid_monai.ums.states import ABSENT, PRESENT

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
