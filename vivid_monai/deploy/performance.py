"""How the answers of a finished classifier hold on its test images, field by field."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vivid_monai.deploy.answers import Answers
from vivid_monai.metrics.statistics import brier, ece
from vivid_monai.ums.states import ABSENT, PRESENT


@dataclass(frozen=True)
class FieldPerformance:
    """One field on the test images whose state is present or absent.

    Attributes:
        n_present, n_absent: images.
        found: share of the present images that are called present; missed: called absent. The rest is uncertain.
        cleared: share of the absent images that are called absent; alarmed: called present.
        brier, ece: of the calibrated probabilities; brier_before, ece_before: as the head was fitted.
        None where there is nothing to count, or the field is not answered.
    """

    field: str
    n_present: int
    n_absent: int
    found: float | None
    missed: float | None
    cleared: float | None
    alarmed: float | None
    brier: float | None
    ece: float | None
    brier_before: float | None
    ece_before: float | None


def measure_answers(
    answers: Answers, probabilities: NDArray, before: NDArray, states: NDArray
) -> list[FieldPerformance]:
    """Count the answers to test images.

    Args:
        probabilities: calibrated, (N, F), columns as ``answers.fields``.
        before: the same, before calibration.
        states: (N, F), codes of :mod:`vivid_monai.ums.states`.
    """
    called = [answers.states(row) for row in probabilities]
    out = []
    for column, field in enumerate(answers.fields):
        said = np.array([one[field] or "" for one in called])
        present, absent = states[:, column] == PRESENT, states[:, column] == ABSENT
        answered = bool((said != "").all())
        error, error_before = (_errors(scores[:, column], states[:, column]) for scores in (probabilities, before))
        out.append(
            FieldPerformance(
                field,
                n_present=int(present.sum()),
                n_absent=int(absent.sum()),
                found=_share(said[present] == "present") if answered else None,
                missed=_share(said[present] == "absent") if answered else None,
                cleared=_share(said[absent] == "absent") if answered else None,
                alarmed=_share(said[absent] == "present") if answered else None,
                brier=error[0],
                ece=error[1],
                brier_before=error_before[0],
                ece_before=error_before[1],
            )
        )
    return out


def _share(hits: NDArray) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _errors(probabilities: NDArray, states: NDArray) -> tuple[float | None, float | None]:
    images = np.arange(len(states))
    once = np.ones((1, len(states)), int)
    values = [float(metric(probabilities, states, images)(once)[0]) for metric in (brier, ece)]
    return (None, None) if np.isnan(values[0]) else (values[0], values[1])
