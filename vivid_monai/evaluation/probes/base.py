"""The interface of probes, and the checks and choices that all fits share."""

import math
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.ums.states import ABSENT, PRESENT

ENOUGH = 10
"""Present and absent validation records that a field needs for a setting of its own (docs/probes.md)."""


class Probe(Protocol):
    """A classifier on frozen features.

    Attributes:
        untrained: columns that the training rows had nothing to teach of; their probabilities mean nothing.
    """

    @property
    def untrained(self) -> tuple[int, ...]: ...

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Features (N, D) → float64 (N, F) in [0, 1]; a :class:`VividError` where D is another."""

    def describe(self) -> dict[str, Any]:
        """JSON: the kind, its settings, what was tried and chosen, warnings, seconds."""


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of features (N, D), float64 (D,) each; the deviation of a constant feature is infinite."""
    shift, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scale[scale < 1e-6 * max(scale.max(), 1e-12)] = np.inf  # divided by it, it says nothing
    return shift, scale


def is_answered(states: np.ndarray) -> np.ndarray:
    """Which states are present or absent, bool of the same shape; uncertain and null are left out everywhere."""
    return (states == PRESENT) | (states == ABSENT)


def columns_with_both(states: np.ndarray) -> np.ndarray:
    """Which fields have a present and an absent record, bool (F,)."""
    return (states == PRESENT).any(0) & (states == ABSENT).any(0)


def check_sides(train: Features, validation: Features, *, exclusive: bool) -> None:
    """Refuse features that no probe can be fitted on.

    Raises:
        VividError: no rows, parts that differ in length, another number of features or fields, features of two
            encoders, a number that is not finite; with ``exclusive``, a row without exactly one present state among
            absent ones.
    """
    for name, part in (("training", train), ("validation", validation)):
        lengths = {len(part.x), len(part.states), len(part.patients), len(part.ids)}
        if lengths == {0} or len(lengths) > 1 or part.x.ndim != 2 or part.states.ndim != 2:
            raise VividError(
                f"the {name} features are not usable: x {part.x.shape}, states {part.states.shape}, "
                f"{len(part.patients)} patients, {len(part.ids)} ids"
            )
        finite = np.isfinite(part.x).all(1)
        if not finite.all():
            raise VividError(f"the {name} features of image {part.ids[np.argmin(finite)]} are not finite")
        if exclusive:
            one = ((part.states == PRESENT).sum(1) == 1) & ((part.states == ABSENT).sum(1) == part.states.shape[1] - 1)
            if not one.all():
                raise VividError(
                    f"classes exclude each other here, but the {name} image {part.ids[np.argmin(one)]} has the states "
                    f"{part.states[np.argmin(one)].tolist()}: exactly one must be present and all others absent"
                )
    if train.x.shape[1] != validation.x.shape[1] or train.states.shape[1] != validation.states.shape[1]:
        raise VividError(
            f"training and validation do not go together: features {train.x.shape[1]} and {validation.x.shape[1]}, "
            f"fields {train.states.shape[1]} and {validation.states.shape[1]}"
        )
    if train.encoder != validation.encoder:
        raise VividError("the training and validation features are of different encoders; extract both with the same")


def check_width(x: np.ndarray, dim: int) -> None:
    """Raise a :class:`VividError` where ``x`` is not (N, dim)."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise VividError(f"this probe takes features (N, {dim}), not {x.shape}; they are of another encoder")


def draw_patients(train: Features, fraction: float, seed: int) -> Features:
    """The rows of a share of the patients, at least one, drawn by the seed; of a share of 1 all rows, undrawn.

    The same seed draws the patients in the same order, so that a smaller share is part of a larger one.

    Raises:
        VividError: a share outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise VividError(f"train_fraction must lie in (0, 1], but is {fraction}")
    if fraction == 1:
        return train
    patients = np.unique(train.patients)
    drawn = np.random.default_rng(seed).permutation(patients)[: math.ceil(fraction * len(patients))]
    rows = np.flatnonzero(np.isin(train.patients, drawn))
    return replace(
        train, x=train.x[rows], states=train.states[rows], patients=train.patients[rows], ids=train.ids[rows]
    )


def choose(losses: np.ndarray, states: np.ndarray, *, together: bool) -> np.ndarray:
    """Which of several settings each field gets, by validation loss.

    A field with :data:`ENOUGH` present and absent validation records gets the setting that is best for itself, any
    other one the setting that is best on average over the fields that have a loss. Of equal ones the first is taken.

    Args:
        losses: (S, F) of S settings, NaN where a field cannot be judged.
        states: (M, F) of the validation rows.
        together: one setting for all fields.

    Returns:
        int (F,), indices of settings.

    Raises:
        VividError: no field can be judged.
    """
    judged = ~np.isnan(losses).any(0)
    if not judged.any():
        raise VividError("the probe's settings cannot be chosen: no fitted field has an answered validation record")
    overall = int(np.argmin(losses[:, judged].mean(1)))
    few = np.minimum((states == PRESENT).sum(0), (states == ABSENT).sum(0))
    own = judged & (few >= ENOUGH) & (not together)
    return np.where(own, np.argmin(np.where(judged, losses, np.inf), axis=0), overall)
