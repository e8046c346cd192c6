"""The attentive probe: SPD's attention pooling and a linear head, trained on the tokens of a frozen encoder."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor, nn

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.probes.base import Probe, batch_loss, columns_taught, is_answered, mean_loss
from vivid_monai.evaluation.probes.linear import UNSEEN, sigmoid_loss, softmax_loss
from vivid_monai.logs import progress
from vivid_monai.networks.spd import SPD
from vivid_monai.ums.states import PRESENT

ROWS = 256  # images to read from disk at a time


class AttentiveHead(nn.Module):
    """Standardised tokens (B, T, dim) → SPD → logits (B, columns).

    Args:
        dim: width of the tokens.
        columns: of the logits.
        groups, queries: of the SPD; its heads are 4, or as many as divide the width.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, dim: int, columns: int, *, groups: int = 4, queries: int = 2) -> None:
        super().__init__()
        self.config = {"dim": dim, "columns": columns, "groups": groups, "queries": queries}
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.spd = SPD(dim, groups=groups, queries=queries, heads=math.gcd(4, dim))
        self.head = nn.Linear(self.spd.out_dim, columns)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.spd.pool((tokens - self.shift) / self.scale))

    @torch.no_grad()
    def folded_spd(self) -> SPD:
        """The SPD that reads raw tokens as this one reads standardised ones: its function, to rounding.

        With t' = (t - s) / σ a key becomes K / σ, as what s adds to a query's logits is the same for all tokens; a
        value becomes V / σ, less V s / σ in every image, which the output's bias takes up.
        """
        spd = copy.deepcopy(self.spd).double()
        shift, scale = self.shift.double(), self.scale.double()
        spd.key_weight.div_(scale)
        spd.value_weight.div_(scale)
        constant = torch.einsum("ghed,d->ghe", spd.value_weight, shift).flatten(1)
        spd.out_bias.sub_(torch.einsum("gfd,gd->gf", spd.out_weight, constant)[:, None])
        return spd.float().requires_grad_(True)


@dataclass(frozen=True)
class AttentiveProbe(Probe):
    """A fitted :class:`AttentiveHead`; untrained columns as those of a linear probe.

    Attributes:
        module: in evaluation mode, on the CPU.
        encoder: fingerprint of the encoder whose tokens it takes; "" where it is not known.
    """

    module: AttentiveHead
    encoder: str = ""

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Tokens (N, T, D) → float64 (N, F)."""
        if x.ndim != 3 or x.shape[2] != len(self.module.shift):
            raise VividError(f"this probe takes tokens (N, T, {len(self.module.shift)}), not {x.shape}")
        logits = _logits(self.module, x)
        logits[:, list(self.untrained)] = UNSEEN if self.exclusive else 0.0
        return softmax(logits, axis=1) if self.exclusive else expit(logits)


def chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, some hundred at a time: they may be mapped from a disk."""
    return (x[start : start + ROWS] for start in range(0, len(x), ROWS))


def fit_attentive(
    train: Features,
    validation: Features,
    *,
    exclusive: bool = False,
    seed: int = 0,
    lrs: Sequence[float] = (3e-4, 1e-3),
    weight_decays: Sequence[float] = (0.01, 0.3),
    groups: int = 4,
    queries: int = 2,
    epochs: int = 30,
    patience: int = 4,
    batch_size: int = 32,
) -> AttentiveProbe:
    """Train SPD (without dropout and penalty) and a linear head on tokens, by AdamW.

    The loss is the mean binary cross-entropy over the answered states of a batch, or the cross-entropy of classes.
    Every learning rate is tried with every weight decay; of all epochs the one with the lowest validation log loss,
    mean over the fields, is kept.

    Args:
        train, validation: tokens (N, T, D), standardised by the training ones, channel by channel.
        seed: of the first weights and the order of the images; the global random state is left alone.
        epochs: at most; a fit ends after `patience` epochs without a lower loss.

    Raises:
        VividError: nothing to fit or to choose by, a setting out of its range.
    """
    if min(epochs, patience, batch_size) < 1 or not lrs or min(lrs) <= 0 or not weight_decays or min(weight_decays) < 0:
        raise VividError("the attentive probe needs at least one epoch, a positive lr and a weight decay of at least 0")
    taught = columns_taught(train.states, exclusive=exclusive)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shift, scale = _moments(train.x)
    tried: dict[str, list[float]] = {}
    best: tuple[float, dict[str, Any], dict[str, Tensor]] | None = None
    bar = progress(itertools.product(lrs, weight_decays), "attentive probe", len(lrs) * len(weight_decays), leave=False)
    for lr, weight_decay in bar:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = AttentiveHead(train.x.shape[2], len(taught), groups=groups, queries=queries)
        module.shift, module.scale = shift, scale
        module.to(device)
        losses = tried[f"lr {lr:g}, weight decay {weight_decay:g}"] = []
        optimiser = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay)
        generator = np.random.default_rng(seed)
        for epoch in range(1, epochs + 1):
            _train_epoch(module, optimiser, train, taught, generator, batch_size, exclusive=exclusive)
            losses.append(round(_validate(module, validation, taught, exclusive=exclusive), 6))
            if best is None or losses[-1] < best[0]:
                settings = {"lr": lr, "weight_decay": weight_decay, "epoch": epoch}
                best = losses[-1], settings, copy.deepcopy(module.state_dict())
            if epoch - int(np.argmin(losses)) > patience:
                break
    if best is None:
        raise VividError("the attentive probe did not learn: no validation loss is finite; try a smaller lr")
    module.load_state_dict(best[2])
    description = {**best[1], "groups": groups, "queries": queries, "batch_size": batch_size, "tried": tried}
    return AttentiveProbe(
        module.cpu().eval().requires_grad_(False),
        train.encoder,
        exclusive=exclusive,
        untrained=tuple(np.flatnonzero(~taught).tolist()),
        description={**description, "warnings": []},
    )


def _moments(x: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel over all tokens (N, T, D), float32 (D,); a constant channel has infinity."""
    n, total, squares = 0, np.zeros(x.shape[2]), np.zeros(x.shape[2])
    first = x[0].astype(np.float64).mean(0)  # near the mean: nothing is lost where that is far from 0
    for rows in chunks(x):
        tokens = rows.reshape(-1, x.shape[2]).astype(np.float64) - first
        n, total, squares = n + len(tokens), total + tokens.sum(0), squares + (tokens**2).sum(0)
    scale = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0))
    scale[scale < 1e-6 * max(scale.max(), 1e-12)] = np.inf
    return torch.tensor(first + total / n, dtype=torch.float32), torch.tensor(scale, dtype=torch.float32)


def _train_epoch(
    module: AttentiveHead,
    optimiser: torch.optim.Optimizer,
    train: Features,
    taught: np.ndarray,
    generator: np.random.Generator,
    batch_size: int,
    *,
    exclusive: bool,
) -> None:
    counted = is_answered(train.states) & taught
    order = generator.permutation(np.flatnonzero(counted.any(1)))
    for start in range(0, len(order), batch_size):
        rows = np.sort(order[start : start + batch_size])
        logits = module(_tensor(train.x[rows], module))
        loss = batch_loss(logits, train.states[rows], counted[rows], exclusive=exclusive)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _validate(module: AttentiveHead, validation: Features, taught: np.ndarray, *, exclusive: bool) -> float:
    """Mean over the fields of their mean validation loss."""
    target = (validation.states[:, taught] == PRESENT).astype(np.float64)
    losses = (softmax_loss if exclusive else sigmoid_loss)(_logits(module, validation.x)[:, taught], target)[0]
    means = mean_loss(losses, validation.states[:, taught], exclusive)
    if np.isnan(means).all():
        raise VividError("the attentive probe cannot be chosen: no fitted field has an answered validation record")
    return float(np.nanmean(means))


@torch.no_grad()
def _logits(module: AttentiveHead, x: np.ndarray) -> np.ndarray:
    return np.concatenate([module(_tensor(rows, module)).cpu().numpy() for rows in chunks(x)]).astype(np.float64)


def _tensor(rows: np.ndarray, module: AttentiveHead) -> Tensor:
    return torch.from_numpy(rows.astype(np.float32)).to(module.shift.device)
