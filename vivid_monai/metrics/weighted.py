"""AUROC of one field under many sets of patient weights at once: the core of the bootstrap."""

import numpy as np
from numpy.typing import NDArray

from vivid_monai.ums.states import ABSENT, PRESENT

# Resamples × images in work at once: 8 MiB per float64 array, so that memory stays small whatever the test set.
_BLOCK = 1 << 20


class RankedField:
    """The counted images of one field, sorted by score once.

    With weights w, AUROC = Σ_{p present} Σ_{n absent} w_p w_n ([s_p > s_n] + ½ [s_p = s_n]) / (Σ w_p · Σ w_n),
    the weighted Mann–Whitney statistic, found in one sweep over the sorted scores.
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
        """Return the AUROC (R,) under each row of the patients' ``weights`` (R, patients); NaN without both classes."""
        out = np.full(len(weights), np.nan)
        if not len(self.groups):
            return out
        step = max(1, _BLOCK // len(self.groups))
        for start in range(0, len(weights), step):
            out[start : start + step] = self._block(weights[start : start + step])
        return out

    def _block(self, weights: NDArray[np.integer]) -> NDArray[np.float64]:
        image_weights = np.take(weights, self.groups, axis=1).astype(np.float64)
        present = image_weights * self.present
        absent = image_weights - present
        if len(self.ties) < len(self.groups):
            present = np.add.reduceat(present, self.ties, axis=1)
            absent = np.add.reduceat(absent, self.ties, axis=1)
        below = np.cumsum(absent, axis=1) - 0.5 * absent
        pairs = present.sum(axis=1) * absent.sum(axis=1)
        wins = np.einsum("rn,rn->r", present, below)
        return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
