"""Linear probes: logistic regression with a validated L2 penalty, and the published protocol by AdamW."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax, softmax
from threadpoolctl import threadpool_limits
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.probes.base import (
    Probe,
    batch_loss,
    check_width,
    choose,
    columns_taught,
    is_answered,
    mean_loss,
    moments,
    told,
)
from vivid_monai.logs import progress
from vivid_monai.metrics.masked import counts, masked_auroc
from vivid_monai.ums.states import PRESENT

CHUNK = 16_384
SMALL = 4_000_000
"""Numbers in the feature matrix below which one BLAS thread is the fastest: many small products are shared out in more
time than they take."""

# Own solver: all fields at one strength share each product with the features, and a strength starts where the one
# before ended. scripts/bench_probe.py measures its cost next to the published protocol (figures in docs/probes.md).
Loss = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""logits (N, F), target (N, F) → loss per entry, slope (N, F): both still to be weighted by the share of each entry."""


@dataclass(frozen=True)
class Axes:
    """Standardisation of features, (D,) each, and the rotation (D, R) onto their R principal axes with any variance.

    The scale of a constant feature is infinite, which takes it out.
    """

    shift: np.ndarray
    scale: np.ndarray
    rotation: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Self:
        """From features (N, D)."""
        shift, scale = moments(x)
        gram = np.zeros((x.shape[1], x.shape[1]))
        for start in range(0, len(x), CHUNK):
            z = (x[start : start + CHUNK] - shift) / scale
            gram += z.T @ z
        variance, rotation = eigh(gram / len(x))
        kept = variance > 1e-13 * max(variance[-1], 1e-12)
        return cls(shift, scale, rotation[:, kept], variance[kept])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, D) → float64 (N, R)."""
        u = np.empty((len(x), len(self.variance)))
        for start in range(0, len(x), CHUNK):
            rows = slice(start, start + CHUNK)
            u[rows] = ((x[rows] - self.shift) / self.scale) @ self.rotation
        return u

    def unfold(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (F, R + 1) on the axes, bias last → weight (F, D) and bias (F,) for raw features."""
        weight = w[:, :-1] @ self.rotation.T / self.scale
        return weight, w[:, -1] - weight @ self.shift


def sigmoid_loss(logits: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log loss of yes/no questions and its slope, both (N, F); target 0 or 1."""
    return -log_expit(np.where(target > 0, logits, -logits)), expit(logits) - target


def softmax_loss(logits: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log loss of a choice between classes and its slope, both (N, F); target one-hot, the loss stands at its class."""
    log_p = log_softmax(logits, axis=1)
    return -target * log_p, np.exp(log_p) - target


def solve(
    u: np.ndarray,
    target: np.ndarray,
    share: np.ndarray,
    strength: float,
    *,
    loss: Loss,
    variance: np.ndarray,
    start: np.ndarray,
) -> tuple[np.ndarray, int]:
    """The minimum of ``Σ_if share_if · loss_if + strength/2 · Σ_f ‖w_f‖²``; biases carry no penalty.

    Args:
        u: float64 (N, R), rows on their axes. target: float64 (N, F). share: float64 (N, F) weight of each entry.
        variance: (R,) of the axes. start: (F, R + 1) where to begin, bias last.

    Returns:
        The coefficients (F, R + 1), bias last, and the number of evaluations it took.

    Raises:
        VividError: the optimum was not reached.
    """
    weight = start[:, :-1]
    slope = loss(u @ weight.T + start[:, -1], target)[1]
    p = slope + target
    curvature = np.maximum((share * p * (1 - p)).sum(0), 1e-9)[:, None]
    scale = np.sqrt(np.hstack([curvature * variance + strength, curvature]))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(start.shape) / scale
        each, slope = loss(u @ w[:, :-1].T + w[:, -1], target)
        slope *= share
        value = (share * each).sum() + strength / 2 * (w[:, :-1] ** 2).sum()
        gradient = np.hstack([slope.T @ u + strength * w[:, :-1], slope.sum(0)[:, None]])
        return value, (gradient / scale).ravel()

    options = {"maxiter": 5000, "maxfun": 20_000, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-7}
    with threadpool_limits(1 if u.size < SMALL else None, user_api="blas"):
        result = minimize(objective, (start * scale).ravel(), jac=True, method="L-BFGS-B", options=options)
    if np.abs(result.jac).max() > 1e-4:
        raise VividError(
            f"the probe's regression at strength {strength:g} did not settle after {result.nfev} evaluations "
            f"({result.message}); try stronger regularisation"
        )
    return result.x.reshape(start.shape) / scale, result.nfev


STRENGTHS = tuple(float(s) for s in np.logspace(-6, 2, 17))
RISING = 3
"""Strengths in a row by which the validation loss of every field must have risen for weaker ones to be left out."""
WORTH_TELLING = 0.005
"""Nats of validation loss that the last step of the grid must win before a reader is troubled with it."""
UNSEEN = -1e4
"""Logit of a class without a training image: its probability is 0 in float64."""


@dataclass(frozen=True)
class LinearProbe(Probe):
    """A fitted head: ``logits = x @ weight.T + bias`` on raw features; any standardisation is folded in.

    Columns without both states among the training rows have weight and bias 0 (probability 0.5), classes without a
    training image probability 0.

    Attributes:
        weight: float64 (F, D). bias: float64 (F,).
        encoder: fingerprint of the encoder whose features it takes; "" where it is not known.
    """

    weight: np.ndarray
    bias: np.ndarray
    encoder: str = ""

    @classmethod
    def of_head(cls, head: nn.Linear, encoder: str = "", *, untrained: Sequence[int] = (), **rest: Any) -> Self:
        """The probe that a trained head (D to F) is; of ``untrained`` columns weight and bias become 0."""
        weight, bias = (one.detach().cpu().numpy().astype(np.float64) for one in (head.weight, head.bias))
        weight[list(untrained)], bias[list(untrained)] = 0, 0
        return cls(weight, bias, encoder, untrained=tuple(untrained), **rest)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(N, D) → float64 (N, F)."""
        check_width(x, self.weight.shape[1])
        return x @ self.weight.T + self.bias

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """(N, D) → float64 (N, F)."""
        logits = self.logits(x)
        return softmax(logits, axis=1) if self.exclusive else expit(logits)


def fit_linear(
    train: Features, validation: Features, *, exclusive: bool = False, strengths: Sequence[float] = STRENGTHS
) -> LinearProbe:
    """Logistic regression for each field, or one softmax regression where classes exclude each other.

    Minimises ``mean_i loss_if + strength_f/2 · ‖w_f‖²`` over the rows that answer field f (with ``exclusive``, the mean
    cross-entropy with one strength), on features standardised by the training rows. Each field gets the strength with
    the lowest validation log loss; :func:`~vivid_monai.evaluation.probes.base.choose` says which field has its own.

    The grid is fitted from the strongest on. It ends early once every field's validation loss has risen three times in
    a row and lies over its least by more than .005 nats: weak strengths take the longest, and overfit.

    Args:
        strengths: the grid, L2 weights > 0.

    Raises:
        VividError: nothing to fit or to choose by, a bad grid.
    """
    grid = sorted(strengths, reverse=True)  # from the stiffest on: each start is near its solution
    if not grid or min(grid) <= 0:
        raise VividError(f"strengths must be positive numbers, not {list(strengths)}")
    taught = columns_taught(train.states, exclusive=exclusive)
    axes = Axes.of(train.x)
    u, u_val = axes(train.x), axes(validation.x)
    target, target_val = ((one.states[:, taught] == PRESENT).astype(np.float64) for one in (train, validation))
    counted = np.ones_like(target, bool) if exclusive else is_answered(train.states[:, taught])
    share = counted / counted.sum(0)
    loss = softmax_loss if exclusive else sigmoid_loss

    path = np.zeros((len(grid), len(taught), u.shape[1] + 1))
    w = np.zeros((target.shape[1], u.shape[1] + 1))
    tried: list[np.ndarray] = []
    evaluations = 0
    for step, strength in enumerate(progress(grid, "fitting", unit="strength", delay=2, leave=False)):
        w, needed = solve(u, target, share, strength, loss=loss, variance=axes.variance, start=w)
        evaluations += needed
        path[step, taught] = w
        of_rows = loss(u_val @ w[:, :-1].T + w[:, -1], target_val)[0]
        tried.append(mean_loss(of_rows, validation.states[:, taught], exclusive))
        if _only_rises(np.array(tried)):
            break
    chosen, means = choose(tried, validation.states, taught, exclusive=exclusive)

    weight, bias = axes.unfold(path[chosen, np.arange(len(taught))])
    if exclusive:
        bias -= bias[taught].mean()  # probabilities do not depend on it; one solution of many
        bias[~taught] = UNSEEN
    description = told("strengths", grid[: len(means)], chosen, means, taught) | {"evaluations": evaluations}
    description["warnings"] = _warnings(np.array(grid), means, chosen, taught)
    return _probe(weight, bias, train, taught, exclusive, description)


def _only_rises(means: np.ndarray) -> bool:
    """Whether no weaker strength than those tried is worth a try: mean losses (S, n), NaN where there is none."""
    judged = means[:, ~np.isnan(means[0])]
    if len(judged) <= RISING or not judged.size:
        return False
    risen = (np.diff(judged[-RISING - 1 :], axis=0) > 0).all(0)
    return bool((risen & (judged[-1] > judged.min(0) + WORTH_TELLING)).all())


def _probe(
    weight: np.ndarray, bias: np.ndarray, train: Features, taught: np.ndarray, exclusive: bool, description: dict
) -> LinearProbe:
    untrained = tuple(np.flatnonzero(~taught).tolist())
    return LinearProbe(weight, bias, train.encoder, exclusive=exclusive, untrained=untrained, description=description)


def _warnings(grid: np.ndarray, losses: np.ndarray, chosen: np.ndarray, taught: np.ndarray) -> list[dict[str, Any]]:
    """A strength at the end of the grid says that a better one may lie beyond, where the last step still mattered."""
    out = []
    edges = [(0, 1, "strongest"), (-1, -2, "weakest")] if len(losses) > 1 else []
    if len(losses) < len(grid):  # the weakest was not tried
        del edges[1:]
    for edge, before, side in edges:
        gain = losses[before] - losses[edge]
        columns = np.flatnonzero(taught & (grid[chosen] == grid[edge]) & (gain > WORTH_TELLING))
        if columns.size:
            message = (
                f"got the {side} regularisation of the grid ({grid[edge]:g}), and a better one may lie beyond: "
                f"its last step lowered the validation loss by {gain[columns].max():.1g} nats"
            )
            out.append({"columns": columns.tolist(), "message": message})
    return out


def fit_published(
    train: Features,
    validation: Features,
    *,
    exclusive: bool = False,
    seed: int = 0,
    steps: int = 3000,
    batch_size: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    evaluate_every: int = 100,
) -> LinearProbe:
    """The published protocol: a head trained by AdamW for 3,000 steps of 32 images, the best step kept.

    Kept for comparison (docs/probes.md). The encoder is frozen and images are not augmented, so training on cached
    features gives what training on images does, without 96,000 forward passes.

    The loss is the mean binary cross-entropy over the answered states of a batch, or the cross-entropy of classes. The
    step with the best validation score is kept: macro AUROC over the fields with both states, or accuracy of classes.
    Paper and code give 3,000 steps of 32; learning rate, decay and the interval of evaluation are ours.

    Args:
        seed: of the head's first weights and of the order of the images; the global random state is left alone.

    Raises:
        VividError: nothing to fit or to choose by, a setting out of its range.
    """
    if min(steps, batch_size, evaluate_every) < 1 or lr <= 0 or weight_decay < 0:
        raise VividError("the published protocol needs at least one step, an image to a batch and a positive lr")
    taught = columns_taught(train.states, exclusive=exclusive)
    if not (exclusive or np.minimum(*counts(validation.states))[taught].any()):
        raise VividError("the best step cannot be chosen: no fitted field has both states among the validation rows")
    generator = torch.Generator().manual_seed(seed)
    dim, width = train.x.shape[1], len(taught)
    weight, bias = (
        ((torch.rand(shape, generator=generator) * 2 - 1) / dim**0.5).requires_grad_()
        for shape in ((width, dim), (width,))
    )
    optimiser = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=weight_decay)
    answered = is_answered(train.states) & taught
    shown = np.flatnonzero(answered.any(1))
    # Each image once before any comes again; a batch may reach into the next round.
    order = RandomSampler(shown, num_samples=steps * batch_size, generator=generator)
    batches = BatchSampler(order, batch_size, drop_last=False)
    scores: dict[int, float] = {}
    best = (-1.0, weight.detach().numpy(), bias.detach().numpy())
    for step, batch in enumerate(progress(batches, "published protocol", unit="step", delay=2, leave=False), 1):
        rows = np.sort(shown[batch])
        logits = torch.from_numpy(train.x[rows]) @ weight.T + bias
        loss = batch_loss(logits, train.states[rows], answered[rows], exclusive=exclusive)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % evaluate_every == 0 or step == steps:
            now = weight.detach().numpy().copy(), bias.detach().numpy().copy()
            scores[step] = _score(validation, *now, taught, exclusive)
            best = max(best, (scores[step], *now), key=lambda one: one[0])  # of equal ones the first
    w, b = (part.astype(np.float64) for part in best[1:])
    w[~taught], b[~taught] = 0.0, UNSEEN if exclusive else 0.0
    description = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "best_step": max(scores, key=scores.__getitem__),
        "tried": {str(step): round(score, 6) for step, score in scores.items()},
        "warnings": [],
    }  # fmt: skip
    return _probe(w, b, train, taught, exclusive, description)


def _score(part: Features, weight: np.ndarray, bias: np.ndarray, taught: np.ndarray, exclusive: bool) -> float:
    logits = part.x @ weight.T + bias
    if exclusive:
        logits[:, ~taught] = UNSEEN
        return float((logits.argmax(1) == part.states.argmax(1)).mean())
    return float(np.nanmean(masked_auroc(logits[:, taught], part.states[:, taught])))
