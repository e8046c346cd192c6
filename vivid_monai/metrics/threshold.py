"""The threshold from which an image is called present."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve

from vivid_monai.metrics.masked import check_scores
from vivid_monai.ums.states import ABSENT, PRESENT


def best_f1_thresholds(probabilities: ArrayLike, states: ArrayLike) -> NDArray[np.float64]:
    """Return the threshold of each field whose F1 is the highest; NaN where a class is missing.

    ``probabilities`` and ``states`` (N, F) as for `masked_auroc`, of the validation images: a threshold chosen on the
    test images would flatter them. A threshold lies midway between two neighbouring scores, so that it does not hang on
    the last digit of one image; of several that are equally good, the highest is taken (the fewest false alarms).
    """
    values, codes = check_scores(probabilities, states)
    out = np.full(values.shape[1], np.nan)
    for field in range(values.shape[1]):
        counted = (codes[:, field] == PRESENT) | (codes[:, field] == ABSENT)
        truth, score = codes[counted, field] == PRESENT, values[counted, field]
        if truth.any() and not truth.all():
            out[field] = _best(truth, score)
    return out


def _best(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    precision, recall, thresholds = precision_recall_curve(truth, score)
    precision, recall = precision[:-1], recall[:-1]
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    place = int(np.flatnonzero(f1 >= f1.max() - 1e-12)[-1])
    below = thresholds[place - 1] if place else 0.0
    middle = (below + thresholds[place]) / 2
    # Between two scores that differ in their last digit there is nothing: the middle is rounded to one of them.
    return float(middle if middle > below else thresholds[place])
