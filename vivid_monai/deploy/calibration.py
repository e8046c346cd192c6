"""Calibration of probabilities and decision thresholds on validation images; operating points on test images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from vivid_monai.deploy.postprocessing import DecisionRules
from vivid_monai.errors import VividError
from vivid_monai.metrics.intervals import Patients, auroc_resamples
from vivid_monai.metrics.statistics import brier, ece
from vivid_monai.ums.states import ABSENT, PRESENT

ENOUGH = 10
"""Present and absent validation images that a field needs to be answered."""


@dataclass(frozen=True)
class Calibration:
    """How one field's logit becomes a probability and a state.

    Attributes:
        slope, intercept: the probability of presence is σ(slope · logit + intercept) (Platt 1999).
        absent_below: decision threshold: a lower probability is called absent.
        present_from: decision threshold: this and a higher probability is called present, one between the two
            thresholds uncertain. Both are None where the field is not answered.
        n_present, n_absent: validation images behind these numbers.
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
    from certainty. "Absent" is said under the highest threshold with this `sensitivity` (rule out), "present" from the
    lowest threshold with this `specificity` on (rule in). Both rates do not depend on prevalence, which differs between
    hospitals. Where one threshold does both, there is nothing uncertain between them.

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
            reason = f"on the validation images it does not differ from chance ({chance[column]})"
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
    words = []
    for value, (low, high) in zip(measured.value, measured.interval(), strict=True):
        if np.isnan(low):  # perfect separation has no interval
            words.append("" if value == 1 else f"AUROC {value:.2f}")
        else:
            words.append("" if low > 0.5 else f"AUROC {value:.2f}, {low:.2f} to {high:.2f}")
    return words


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


@dataclass(frozen=True)
class OperatingPoint:
    """How one field does on the test images whose state is present or absent.

    Attributes:
        n_present, n_absent: images.
        sensitivity: share of the present images that are called present; missed: called absent; the rest: uncertain.
        specificity: share of the absent images that are called absent; false_alarms: called present.
        brier, ece: of the calibrated probabilities; brier_before, ece_before: before calibration.
            None where there is nothing to count, or the field is not answered.
    """

    field: str
    n_present: int
    n_absent: int
    sensitivity: float | None
    missed: float | None
    specificity: float | None
    false_alarms: float | None
    brier: float | None
    ece: float | None
    brier_before: float | None
    ece_before: float | None


def operating_points(
    rules: DecisionRules, probabilities: NDArray, before: NDArray, states: NDArray
) -> list[OperatingPoint]:
    """Sensitivity, specificity and calibration of every field.

    Args:
        probabilities: calibrated, (N, F), columns as ``rules.fields``.
        before: the same, before calibration.
        states: (N, F), codes of :mod:`vivid_monai.ums.states`.
    """
    called = [rules.states(row) for row in probabilities]
    points = []
    for column, field in enumerate(rules.fields):
        state = np.array([one[field] or "" for one in called])
        present, absent = states[:, column] == PRESENT, states[:, column] == ABSENT

        def share(of: NDArray, word: str, state: NDArray = state) -> float | None:
            return float((state[of] == word).mean()) if of.any() and (state != "").all() else None

        error, error_before = (_errors(scores[:, column], states[:, column]) for scores in (probabilities, before))
        points.append(
            OperatingPoint(
                field,
                n_present=int(present.sum()),
                n_absent=int(absent.sum()),
                sensitivity=share(present, "present"),
                missed=share(present, "absent"),
                specificity=share(absent, "absent"),
                false_alarms=share(absent, "present"),
                brier=error[0],
                ece=error[1],
                brier_before=error_before[0],
                ece_before=error_before[1],
            )
        )
    return points


def _errors(probabilities: NDArray, states: NDArray) -> tuple[float | None, float | None]:
    images = np.arange(len(states))
    once = np.ones((1, len(states)), int)
    values = [float(metric(probabilities, states, images)(once)[0]) for metric in (brier, ece)]
    return (None, None) if np.isnan(values[0]) else (values[0], values[1])
