"""The linear probe: logistic regression on standardised features, its regularisation chosen on validation patients."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from scipy.special import expit, softmax
from tqdm import tqdm

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.probes.base import check_width, choose, columns_with_both, is_answered
from vivid_monai.evaluation.probes.logistic import Axes, sigmoid_loss, softmax_loss, solve
from vivid_monai.ums.states import PRESENT

STRENGTHS = tuple(float(s) for s in np.logspace(-6, 2, 17))
WORTH_TELLING = 0.005
"""Nats of validation loss that the last step of the grid must win before a reader is troubled with it."""
UNSEEN = -1e4
"""Logit of a class without a training image: its probability is 0 in float64."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted head: ``logits = x @ weight.T + bias`` on raw features; any standardisation is folded in.

    Attributes:
        weight: float64 (F, D). bias: float64 (F,).
        exclusive: softmax over the columns instead of a sigmoid of each.
        untrained: columns without both states among the training rows (weight and bias 0, probability 0.5); with
            ``exclusive``, classes without a training image (probability 0).
        encoder: fingerprint of the encoder whose features it takes; "" where it is not known.
        description: how it was fitted, as JSON.
    """

    weight: np.ndarray
    bias: np.ndarray
    exclusive: bool = False
    untrained: tuple[int, ...] = ()
    encoder: str = ""
    description: dict[str, Any] = field(default_factory=dict)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(N, D) → float64 (N, F)."""
        check_width(x, self.weight.shape[1])
        return x @ self.weight.T + self.bias

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """(N, D) → float64 (N, F)."""
        logits = self.logits(x)
        return softmax(logits, axis=1) if self.exclusive else expit(logits)

    def select(self, columns: Sequence[int]) -> Self:
        """The head of some columns, in the order given; what it says of them does not change.

        Raises:
            VividError: a column that is not there or is given twice; some of the classes of a softmax, whose
                probabilities would change.
        """
        chosen, width = list(columns), len(self.bias)
        if len(set(chosen)) != len(chosen) or not all(0 <= column < width for column in chosen):
            raise VividError(f"columns {chosen} cannot be taken from a head of {width}")
        if self.exclusive and len(chosen) != width:
            raise VividError(
                f"{len(chosen)} of {width} classes that exclude each other: their probabilities would change"
            )
        untrained = tuple(new for new, old in enumerate(chosen) if old in self.untrained)
        return replace(self, weight=self.weight[chosen], bias=self.bias[chosen], untrained=untrained)

    def describe(self) -> dict[str, Any]:
        return dict(self.description)


def fit_linear(
    train: Features, validation: Features, *, exclusive: bool = False, strengths: Sequence[float] = STRENGTHS
) -> LinearProbe:
    """Logistic regression for each field, or one softmax regression where classes exclude each other.

    Minimises ``mean_i loss_if + strength_f/2 · ‖w_f‖²`` over the rows that answer field f (with ``exclusive``, the mean
    cross-entropy with one strength), on features standardised by the training rows. Each field gets the strength with
    the lowest validation log loss; :func:`~vivid_monai.evaluation.probes.base.choose` says which field has its own.

    Args:
        strengths: the grid, L2 weights > 0.

    Raises:
        VividError: nothing to fit or to choose by, a bad grid.
    """
    grid = sorted(strengths, reverse=True)  # from the stiffest on: each start is near its solution
    if not grid or min(grid) <= 0:
        raise VividError(f"strengths must be positive numbers, not {list(strengths)}")
    seen = (train.states == PRESENT).any(0) if exclusive else columns_with_both(train.states)
    fitted = np.flatnonzero(seen)
    if fitted.size < (2 if exclusive else 1):
        raise VividError(
            "no probe can be fitted: "
            + (
                "all training images are of one class"
                if exclusive
                else "no field has both a present and an absent record"
            )
        )
    axes = Axes.of(train.x)
    u, u_val = axes(train.x), axes(validation.x)
    counted = np.ones_like(train.states, bool) if exclusive else is_answered(train.states)
    target = (train.states[:, fitted] == PRESENT).astype(np.float64)
    share = counted[:, fitted] / counted[:, fitted].sum(0)
    loss = softmax_loss if exclusive else sigmoid_loss

    path = np.zeros((len(grid), len(seen), u.shape[1] + 1))
    losses = np.full((len(grid), len(seen)), np.nan)
    start = np.zeros((len(fitted), u.shape[1] + 1))
    evaluations = 0
    for step, strength in enumerate(tqdm(grid, "fitting", unit="strength", delay=2, leave=False)):
        start, needed = solve(u, target, share, strength, loss=loss, variance=axes.variance, start=start)
        evaluations += needed
        path[step, fitted] = start
        losses[step] = _validation_loss(u_val, validation.states, path[step], seen, exclusive)
    chosen = choose(losses, validation.states, together=exclusive)

    weight, bias = axes.unfold(path[chosen, np.arange(len(seen))])
    if exclusive:
        bias -= bias[fitted].mean()  # probabilities do not depend on it; one solution of many
        bias[~seen] = UNSEEN
    untrained = tuple(int(column) for column in np.flatnonzero(~seen))
    description = {
        "strengths": [grid[step] if ok else None for step, ok in zip(chosen.tolist(), seen, strict=True)],
        "tried": {f"{strength:g}": _numbers(row) for strength, row in zip(grid, losses, strict=True)},
        "evaluations": evaluations,
        "warnings": _warnings(np.array(grid), losses, chosen, seen),
    }
    return LinearProbe(weight, bias, exclusive, untrained, train.encoder, description)


def _validation_loss(u: np.ndarray, states: np.ndarray, w: np.ndarray, seen: np.ndarray, exclusive: bool) -> np.ndarray:
    """Mean log loss per field (F,), NaN for fields without a head or an answer; of classes the same for all."""
    out = np.full(len(seen), np.nan)
    logits, target = u @ w[seen, :-1].T + w[seen, -1], (states[:, seen] == PRESENT).astype(np.float64)
    if exclusive:
        known = target.any(1)  # an image of a class that no training image showed can teach nothing here
        if known.any():
            out[seen] = softmax_loss(logits[known], target[known])[0].sum(1).mean()
        return out
    counted = is_answered(states[:, seen])
    total, n = np.where(counted, sigmoid_loss(logits, target)[0], 0).sum(0), counted.sum(0)
    out[seen] = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
    return out


def _numbers(row: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in row]


def _warnings(grid: np.ndarray, losses: np.ndarray, chosen: np.ndarray, seen: np.ndarray) -> list[dict[str, Any]]:
    """A strength at the end of the grid says that a better one may lie beyond, where the last step still mattered."""
    out = []
    for edge, before, side in ((0, 1, "strongest"), (-1, -2, "weakest")) if len(grid) > 1 else ():
        gain = losses[before] - losses[edge]
        columns = np.flatnonzero(seen & (grid[chosen] == grid[edge]) & (gain > WORTH_TELLING))
        if columns.size:
            message = (
                f"got the {side} regularisation of the grid ({grid[edge]:g}), and a better one may lie beyond: "
                f"its last step lowered the validation loss by {gain[columns].max():.1g} nats"
            )
            out.append({"columns": columns.tolist(), "message": message})
    return out
