"""What all probes share: their interface, the columns that can be fitted, and the choice between settings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from vivid_monai.errors import VividError
from vivid_monai.metrics.masked import counts
from vivid_monai.ums.states import ABSENT, PRESENT

ENOUGH = 10
"""Present and absent validation records that a field needs for a setting of its own (docs/probes.md)."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A classifier on frozen features.

    Attributes:
        exclusive: the columns are classes, of which exactly one is present.
        untrained: columns that the training rows had nothing to teach of; their probabilities mean nothing.
        description: JSON: the kind, its settings, what was tried and chosen, warnings, seconds.
    """

    exclusive: bool = False
    untrained: tuple[int, ...] = ()
    description: dict[str, Any] = field(default_factory=dict)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Features (N, D) → float64 (N, F) in [0, 1]; a :class:`VividError` where D is another."""
        raise NotImplementedError


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of features (N, D), float64 (D,) each; the deviation of a constant feature is infinite."""
    shift, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scale[scale < 1e-6 * max(scale.max(), 1e-12)] = np.inf  # divided by it, it says nothing
    return shift, scale


def is_answered(states: np.ndarray) -> np.ndarray:
    """Which states are present or absent, bool of the same shape; uncertain and null are left out everywhere."""
    return (states == PRESENT) | (states == ABSENT)


def columns_taught(states: np.ndarray, *, exclusive: bool) -> np.ndarray:
    """Which columns the training rows teach, bool (F,): fields with both states, or classes with an image."""
    taught = (states == PRESENT).any(0) if exclusive else np.minimum(*counts(states)) > 0
    if exclusive and taught.sum() < 2:
        raise VividError("no probe can be fitted: all training images are of one class")
    if not taught.any():
        raise VividError("no probe can be fitted: no field has both a present and an absent training record")
    return taught


def check_width(x: np.ndarray, dim: int) -> None:
    """Raise a :class:`VividError` where ``x`` is not (N, dim)."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise VividError(f"this probe takes features (N, {dim}), not {x.shape}; they are of another encoder")


def choose(
    tried: Sequence[np.ndarray], states: np.ndarray, taught: np.ndarray, *, exclusive: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which of several settings each field gets, by its mean validation loss; classes get the same.

    A field with :data:`ENOUGH` present and absent validation records gets the setting that is best for itself, any
    other one the setting that is best on average over the fields that have a loss. Of equal ones the first is taken.

    Args:
        tried: of each of S settings the :func:`mean_loss` (n,) of the n columns that were taught.
        states: (M, F) of the validation rows.
        taught: bool (F,).

    Returns:
        int (F,), indices of settings, and the mean losses (S, F), NaN where a field cannot be judged.

    Raises:
        VividError: no field can be judged.
    """
    means = np.full((len(tried), len(taught)), np.nan)
    means[:, taught] = tried
    judged = ~np.isnan(means).any(0)
    if not judged.any():
        raise VividError("the probe's settings cannot be chosen: no fitted field has an answered validation record")
    overall = int(np.argmin(means[:, judged].mean(1)))
    own = judged & (np.minimum(*counts(states)) >= ENOUGH) & (not exclusive)
    return np.where(own, np.argmin(np.where(judged, means, np.inf), axis=0), overall), means


def mean_loss(loss: np.ndarray, states: np.ndarray, exclusive: bool) -> np.ndarray:
    """Mean over the answered rows of the log losses (M, n) of n columns, (n,); NaN where none is.

    Classes have the same; their losses are 0 but for the one that is present.
    """
    if exclusive:
        known = (states == PRESENT).any(1)  # an image of a class that no training image showed can teach nothing here
        return np.full(loss.shape[1], loss[known].sum(1).mean() if known.any() else np.nan)
    answered = is_answered(states)
    total, n = np.where(answered, loss, 0).sum(0), answered.sum(0)
    return np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)


def batch_loss(logits: Tensor, states: np.ndarray, counted: np.ndarray, *, exclusive: bool) -> Tensor:
    """Mean binary cross-entropy over the states (B, F) that are `counted`, or the mean cross-entropy of classes: ()."""
    target = torch.from_numpy((states == PRESENT).astype(np.float32)).to(logits.device)
    if exclusive:
        return cross_entropy(logits, target.argmax(1))
    known = torch.from_numpy(counted).to(logits.device)
    return binary_cross_entropy_with_logits(logits[known], target[known])


def told(name: str, settings: Sequence[float], chosen: np.ndarray, means: np.ndarray, taught: np.ndarray) -> dict:
    """What a description says of :func:`choose`: under ``name`` the setting of each column, and all that was tried."""
    return {
        name: [settings[step] if ok else None for step, ok in zip(chosen.tolist(), taught, strict=True)],
        "tried": {
            f"{setting:g}": [None if np.isnan(loss) else round(float(loss), 6) for loss in row]
            for setting, row in zip(settings, means, strict=True)
        },
    }
