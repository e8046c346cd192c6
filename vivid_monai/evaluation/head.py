"""The linear head that makes a frozen encoder a classifier: masked logistic regression, solved to its optimum."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from threadpoolctl import threadpool_limits

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.ums.states import ABSENT, PRESENT

STRENGTHS = tuple(float(s) for s in np.logspace(-4, 1, 11))
SMALL = 4_000_000
"""Features (rows times columns) below which one BLAS thread is the fastest."""


@dataclass(frozen=True)
class LinearHead:
    """A fitted head: ``logits = x @ weight.T + bias``, with the standardisation of the features already folded in.

    Attributes:
        weight: float64 (F, D). bias: float64 (F,).
        strength: the chosen L2 weight.
        validation_loss: strength → mean validation log loss (nats) of every strength that was tried.
        untrained: columns without a present or without an absent training record; their weights and biases are 0.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float
    validation_loss: dict[float, float]
    untrained: tuple[int, ...]

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(N, D) → float64 (N, F)."""
        return x @ self.weight.T + self.bias


def fit_head(train: Features, validation: Features, *, strengths: Sequence[float] = STRENGTHS) -> LinearHead:
    """Fit one logistic regression per field on the training rows; choose the regularisation on the validation rows.

    Present is 1, absent 0; uncertain and unanswerable states are left out, field by field. Features are standardised
    with the training rows' mean and deviation. Minimises, with L-BFGS on all fields at once (the problem is convex),
    ``Σ_f [mean_i logloss_if + strength/2 · ‖w_f‖²]``. The strength with the lowest mean validation log loss wins; the
    validation rows must be other patients than the training rows.

    Raises:
        VividError: no field has both a present and an absent record among the training rows, or none of those fields
            has an answerable record among the validation rows.
    """
    shift, scale = train.x.mean(0, dtype=np.float64), train.x.std(0, dtype=np.float64)
    scale[scale < 1e-6 * max(scale.max(), 1e-12)] = np.inf  # a constant feature says nothing: weight 0
    z_train, z_val = ((part.x - shift) / scale for part in (train, validation))

    has_both = np.array([(train.states == code).any(0) for code in (ABSENT, PRESENT)]).all(0)
    fitted = np.flatnonzero(has_both)
    judged = [f for f in fitted if np.isin(validation.states[:, f], (ABSENT, PRESENT)).any()]
    if not fitted.size:
        raise VividError("no head can be fitted: no field has both a present and an absent training record")
    if not judged:
        raise VividError("the regularisation cannot be chosen: no fitted field has an answerable validation record")

    losses: dict[float, float] = {}
    solutions: dict[float, np.ndarray] = {}
    start = np.zeros((len(fitted), z_train.shape[1] + 1))
    for strength in sorted(strengths, reverse=True):  # from the stiffest on: each start is near its solution
        start = solutions[strength] = _solve(z_train, train.states[:, fitted], strength, start)
        full = np.zeros((train.states.shape[1], start.shape[1]))
        full[fitted] = start
        losses[strength] = float(np.mean(_log_loss(z_val, validation.states, full)[judged]))
    best = min(losses, key=lambda strength: (losses[strength], -strength))

    weight = np.zeros((train.states.shape[1], z_train.shape[1]))
    bias = np.zeros(train.states.shape[1])
    weight[fitted] = solutions[best][:, :-1] / scale
    bias[fitted] = solutions[best][:, -1] - weight[fitted] @ shift
    untrained = tuple(int(f) for f in np.flatnonzero(~has_both))
    return LinearHead(weight, bias, best, dict(sorted(losses.items())), untrained)


def _solve(z: np.ndarray, states: np.ndarray, strength: float, start: np.ndarray) -> np.ndarray:
    """(N, D), (N, F) → optimum (F, D + 1), the bias in the last column."""
    target = (states == PRESENT).astype(np.float64)
    share = np.isin(states, (ABSENT, PRESENT)) / np.isin(states, (ABSENT, PRESENT)).sum(0)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(start.shape)
        logits = z @ w[:, :-1].T + w[:, -1]
        value = (
            -(share * log_expit(np.where(target > 0, logits, -logits))).sum() + strength / 2 * (w[:, :-1] ** 2).sum()
        )
        slope = share * (expit(logits) - target)
        gradient = np.concatenate([slope.T @ z + strength * w[:, :-1], slope.sum(0)[:, None]], axis=1)
        return value, gradient.ravel()

    # Thousands of small products: handing each to several BLAS threads takes six times as long as doing it.
    with threadpool_limits(1 if z.size < SMALL else None, user_api="blas"):
        result = minimize(
            objective,
            start.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 2000, "ftol": 1e-10, "gtol": 1e-6},
        )
    return result.x.reshape(start.shape)


def _log_loss(z: np.ndarray, states: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean log loss per field (F,), NaN where nothing is answerable."""
    logits = z @ w[:, :-1].T + w[:, -1]
    loss = -log_expit(np.where(states == PRESENT, logits, -logits))
    answerable = np.isin(states, (ABSENT, PRESENT))
    total = np.where(answerable, loss, 0.0).sum(0)
    return np.divide(total, answerable.sum(0), out=np.full(len(total), np.nan), where=answerable.sum(0) > 0)
