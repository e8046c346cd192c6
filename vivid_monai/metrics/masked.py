"""AUROC and average precision for labels with gaps: only present and absent count, all else is left out."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from vivid_monai.errors import VividError
from vivid_monai.ums.states import ABSENT, NULL, PRESENT, UNCERTAIN


def masked_auroc(scores: ArrayLike, states: ArrayLike) -> NDArray[np.float64]:
    """Return the area under the ROC curve of each field, ties counted half; NaN where a class is missing.

    ``scores`` (N, F), higher = more likely present; ``states`` (N, F) int codes, of which 1 (present) counts against
    0 (absent), and 2 (uncertain) and −1 (unanswerable) are left out. Returns (F,). Raises VividError on other shapes
    or codes, and on a score that is not finite where it counts.
    """
    return _per_field(roc_auc_score, scores, states)


def masked_average_precision(scores: ArrayLike, states: ArrayLike) -> NDArray[np.float64]:
    """Return the average precision of each field; arguments, gaps and errors as for `masked_auroc`."""
    return _per_field(average_precision_score, scores, states)


def best_f1_thresholds(probabilities: ArrayLike, states: ArrayLike) -> NDArray[np.float64]:
    """Return the threshold of each field whose F1 is the highest; arguments, gaps and errors as for `masked_auroc`.

    To be chosen on the validation images: one chosen on the test images would flatter them. A threshold lies midway
    between two neighbouring scores, so that it does not hang on the last digit of one image; of several that are
    equally good, the highest is taken (the fewest false alarms).
    """
    return _per_field(_best_f1_threshold, probabilities, states)


def counts(states: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many present and how many absent each field has, (F,) each, from ``states`` (N, F)."""
    codes = np.asarray(states)
    return (codes == PRESENT).sum(axis=0), (codes == ABSENT).sum(axis=0)


def macro(
    values: ArrayLike, n_present: ArrayLike, n_absent: ArrayLike, min_present: int = 10, min_absent: int = 10
) -> float:
    """Return the mean of per-field values (F,), NaN where no field is left.

    Left out are fields with fewer than ``min_present`` present or ``min_absent`` absent (a few cases make an AUROC
    that is mostly noise), and fields without a value (NaN).
    """
    per_field = np.asarray(values, dtype=np.float64)
    kept = (np.asarray(n_present) >= min_present) & (np.asarray(n_absent) >= min_absent) & ~np.isnan(per_field)
    return float(per_field[kept].mean()) if kept.any() else float("nan")


def check_scores(scores: ArrayLike, states: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return scores and states as arrays (N, F) that belong together, or raise VividError."""
    values, codes = np.asarray(scores, dtype=np.float64), np.asarray(states)
    if values.ndim != 2 or values.shape != codes.shape:
        raise VividError(f"scores {values.shape} and states {codes.shape} must have one shape (N, F)")
    if not np.isin(codes, (ABSENT, PRESENT, UNCERTAIN, NULL)).all():
        raise VividError("states hold other codes than absent 0, present 1, uncertain 2 and unanswerable -1")
    wrong = ~np.isfinite(values) & ((codes == PRESENT) | (codes == ABSENT))
    if wrong.any():
        row, field = np.argwhere(wrong)[0]
        raise VividError(f"score {values[row, field]} at row {row}, field {field} is not finite")
    return values, codes.astype(np.int64)


def _per_field(metric: Callable[..., float], scores: ArrayLike, states: ArrayLike) -> NDArray[np.float64]:
    values, codes = check_scores(scores, states)
    out = np.full(values.shape[1], np.nan)
    for field in range(values.shape[1]):
        counted = (codes[:, field] == PRESENT) | (codes[:, field] == ABSENT)
        truth = codes[counted, field] == PRESENT
        if truth.any() and not truth.all():
            out[field] = metric(truth, values[counted, field])
    return out


def _best_f1_threshold(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    precision, recall, thresholds = precision_recall_curve(truth, score)
    precision, recall = precision[:-1], recall[:-1]
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    place = int(np.flatnonzero(f1 >= f1.max() - 1e-12)[-1])
    below = thresholds[place - 1] if place else 0.0
    middle = (below + thresholds[place]) / 2
    # Between two scores that differ in their last digit there is nothing: the middle is rounded to one of them.
    return float(middle if middle > below else thresholds[place])
