"""From logits to probabilities that mean what they say, and to states: fitted on validation images, once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from vivid_monai.errors import VividError
from vivid_monai.metrics.intervals import Patients, auroc_resamples
from vivid_monai.ums.states import ABSENT, PRESENT

ENOUGH = 10
"""Present and absent validation images that a field needs to be answered."""


@dataclass(frozen=True)
class Calibration:
    """How one field's logit becomes a probability and a state.

    Attributes:
        slope, intercept: the probability of presence is σ(slope · logit + intercept) (Platt 1999); 1 and 0: as it is.
        absent_below: a probability under it is called absent.
        present_from: a probability from it on is called present; what lies between is uncertain. Both None where the
            field is not answered.
        n_present, n_absent: validation images that all of this rests on.
        unanswered: why the field is not answered; "" where it is.
    """

    field: str
    slope: float
    intercept: float
    absent_below: float | None
    present_from: float | None
    n_present: int
    n_absent: int
    unanswered: str = ""

    def probability(self, logits: NDArray) -> NDArray[np.float64]:
        """Logits of any shape → probabilities of presence."""
        return expit(self.slope * np.asarray(logits, np.float64) + self.intercept)


def calibrate(
    logits: NDArray,
    states: NDArray,
    patients: NDArray,
    fields: Sequence[str],
    *,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
    enough: int = ENOUGH,
    untrained: Sequence[int] = (),
) -> list[Calibration]:
    """Fit every field by itself on the validation images whose state is present or absent.

    The probability is Platt's: logistic regression on the logit with his smoothed targets, which keep small samples
    from certainty. "Absent" is said under the highest threshold that keeps `sensitivity` of the present images above
    it, "present" from the lowest threshold on that keeps `specificity` of the absent ones under it: rule out, rule in.
    Both rates are properties of the finding, not of its prevalence, which at another hospital is another. Where one
    threshold does both, there is nothing uncertain between them.

    A field is answered only where its AUROC on these images is above one half with its whole 95 % interval: a state
    made of noise looks like any other.

    Args:
        logits: (N, F).
        states: (N, F), codes of :mod:`vivid_monai.ums.states`.
        patients: (N,), whose image it is.
        fields: names of the columns.
        sensitivity, specificity: in (0.5, 1).
        enough: present and absent images that a field needs to be answered as well.
        untrained: columns whose head could not be fitted.

    Raises:
        VividError: shapes that differ, logits that are not finite, rates outside (0.5, 1).
    """
    logits, states = np.asarray(logits, np.float64), np.asarray(states)
    if logits.shape != states.shape or logits.ndim != 2 or logits.shape[1] != len(fields):
        raise VividError(f"logits {logits.shape}, states {states.shape} and {len(fields)} fields do not go together")
    if not np.isfinite(logits).all():
        raise VividError("validation logits are not finite: the weights are damaged")
    if not (0.5 < sensitivity < 1 and 0.5 < specificity < 1):
        raise VividError(f"sensitivity {sensitivity} and specificity {specificity} must lie between 0.5 and 1")
    chance = _chance(logits, states, patients)
    fitted = []
    for column, field in enumerate(fields):
        counted = (states[:, column] == PRESENT) | (states[:, column] == ABSENT)
        logit, truth = logits[counted, column], states[counted, column] == PRESENT
        counts = {"n_present": int(truth.sum()), "n_absent": int((~truth).sum())}
        slope, intercept, reason = 1.0, 0.0, ""
        if column in untrained:
            reason = "its training images have one state only"
        elif min(counts.values()) < enough:
            reason = (
                f"{counts['n_present']} present and {counts['n_absent']} absent validation images, of each of which "
                f"{enough} are needed"
            )
        elif chance[column]:
            reason = f"on the validation images it is not told from chance ({chance[column]})"
        else:
            slope, intercept = _platt(logit, truth)
        low = high = None
        if not reason:
            low, high = _thresholds(expit(slope * logit + intercept), truth, sensitivity, specificity)
        fitted.append(Calibration(field, slope, intercept, low, high, **counts, unanswered=reason))
    return fitted


def _chance(logits: NDArray, states: NDArray, patients: NDArray) -> list[str]:
    """The AUROC of each field, in words, where its interval does not lie above one half; "" where it does."""
    measured = auroc_resamples(Patients(patients), logits, states)
    told = []
    for value, (low, high) in zip(measured.value, measured.interval(), strict=True):
        if np.isnan(low):  # perfect separation has no interval
            told.append("" if value == 1 else f"AUROC {value:.2f}")
        else:
            told.append("" if low > 0.5 else f"AUROC {value:.2f}, {low:.2f} to {high:.2f}")
    return told


def _platt(logit: NDArray, truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept of Platt's sigmoid (Advances in Large Margin Classifiers, 1999, section 2)."""
    n_present, n_absent = truth.sum(), (~truth).sum()
    target = np.where(truth, (n_present + 1) / (n_present + 2), 1 / (n_absent + 2))
    scale = max(logit.std(), 1e-12)  # the solver's tolerance is absolute
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
    both = np.concatenate([logit, logit])[:, None] / scale
    model.fit(both, np.repeat([1, 0], len(logit)), sample_weight=np.concatenate([target, 1 - target]))
    return float(model.coef_[0, 0] / scale), float(model.intercept_[0])


def _thresholds(
    probability: NDArray, truth: NDArray[np.bool_], sensitivity: float, specificity: float
) -> tuple[float, float]:
    present, absent = np.sort(probability[truth]), np.sort(probability[~truth])
    low = _between(probability, present[int((1 - sensitivity) * len(present) + 1e-9)])
    kept = absent[len(absent) - 1 - int((1 - specificity) * len(absent) + 1e-9)]
    above = probability[probability > kept]
    high = _between(probability, above.min()) if len(above) else float(np.nextafter(kept, 2))
    return (low, high) if low < high else ((low + high) / 2,) * 2


def _between(probability: NDArray, value: float) -> float:
    """Midway between `value` and the next lower probability, so that a threshold does not hang on one last digit."""
    lower = probability[probability < value]
    middle = (lower.max() + value) / 2 if len(lower) else value / 2
    return float(middle if middle < value and not (len(lower) and middle <= lower.max()) else value)
