"""The published protocol: a linear head trained by AdamW for 3,000 steps of 32 images, the best step kept.

The encoder is frozen and images are not augmented, so training on cached features gives what training on images does,
without 96,000 forward passes. Kept for comparison (docs/probes.md).
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from tqdm import tqdm

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.probes.base import columns_with_both, is_answered
from vivid_monai.evaluation.probes.linear import UNSEEN, LinearProbe
from vivid_monai.metrics.masked import masked_auroc
from vivid_monai.ums.states import PRESENT


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
    """Train a head step by step on raw features.

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
    seen = (train.states == PRESENT).any(0) if exclusive else columns_with_both(train.states)
    if seen.sum() < (2 if exclusive else 1):
        raise VividError("no probe can be fitted: the training rows show no field with both states")
    if not (exclusive or columns_with_both(validation.states)[seen].any()):
        raise VividError("the best step cannot be chosen: no fitted field has both states among the validation rows")
    generator = torch.Generator().manual_seed(seed)
    dim, width = train.x.shape[1], len(seen)
    weight, bias = (
        ((torch.rand(shape, generator=generator) * 2 - 1) / dim**0.5).requires_grad_()
        for shape in ((width, dim), (width,))
    )
    optimiser = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=weight_decay)
    answered = is_answered(train.states) & seen
    batches = _batches(np.flatnonzero(answered.any(1)), batch_size, generator)
    scores: dict[int, float] = {}
    best = (-1.0, weight.detach().clone(), bias.detach().clone())
    for step in tqdm(range(1, steps + 1), "published protocol", unit="step", delay=2, leave=False):
        rows = next(batches)
        logits = torch.from_numpy(train.x[rows]) @ weight.T + bias
        target = torch.from_numpy((train.states[rows] == PRESENT).astype(np.float32))
        if exclusive:
            loss = cross_entropy(logits, target.argmax(1))
        else:
            counted = torch.from_numpy(answered[rows])
            loss = binary_cross_entropy_with_logits(logits[counted], target[counted])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % evaluate_every == 0 or step == steps:
            now = weight.detach().clone(), bias.detach().clone()
            scores[step] = _score(validation, *now, seen=seen, exclusive=exclusive)
            if scores[step] > best[0]:
                best = (scores[step], *now)
    w, b = (part.double().numpy() for part in best[1:])
    w[~seen], b[~seen] = 0.0, UNSEEN if exclusive else 0.0
    description = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "best_step": max(scores, key=lambda step: (scores[step], -step)),
        "tried": {str(step): round(score, 6) for step, score in scores.items()},
        "warnings": [],
    }  # fmt: skip
    return LinearProbe(
        w, b, exclusive, tuple(int(column) for column in np.flatnonzero(~seen)), train.encoder, description
    )


def _batches(rows: np.ndarray, size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """Endless batches; each image once before any comes again, a batch may reach into the next round."""
    queue = np.empty(0, np.int64)
    while True:
        while len(queue) < size:
            queue = np.concatenate([queue, rows[torch.randperm(len(rows), generator=generator).numpy()]])
        yield np.sort(queue[:size])
        queue = queue[size:]


def _score(part: Features, weight: torch.Tensor, bias: torch.Tensor, *, seen: np.ndarray, exclusive: bool) -> float:
    logits = part.x @ weight.numpy().T + bias.numpy()
    if exclusive:
        logits[:, ~seen] = UNSEEN
        return float((logits.argmax(1) == part.states.argmax(1)).mean())
    return float(np.nanmean(masked_auroc(logits[:, seen], part.states[:, seen])))
