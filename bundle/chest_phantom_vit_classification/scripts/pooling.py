"""Pooling of a backbone's tokens into one feature vector per image."""

import torch
from torch import Tensor

from .errors import VividError

POOLS = ("cls", "mean", "cls+mean", "pooled")


def choose_pool(asked: str | None, *, cls: bool, patches: bool, pooled: bool = True) -> str:
    """The pooling to use: the one asked for, or the network's default.

    Args:
        asked: one of `POOLS`; None: "cls", where there is no CLS token "pooled", where there is neither "mean".
        cls: whether the network has a CLS token.
        patches: whether it gives tokens of a grid.
        pooled: whether it has a pooled output of its own.

    Raises:
        VividError: `asked` is none of `POOLS`, or the network lacks it.
    """
    offered = {"cls": cls, "mean": patches, "cls+mean": cls and patches, "pooled": pooled}
    has = [pool for pool in POOLS if offered[pool]]
    if asked is None:
        return "cls" if cls else "pooled" if pooled else "mean"
    if asked not in POOLS:
        raise VividError(f"pool={asked!r} must be one of {', '.join(POOLS)}")
    if asked not in has:
        raise VividError(f"pool={asked!r}: this network has no such tokens or output; it has {', '.join(has)}")
    return asked


def pool_tokens(tokens: Tensor, pool: str, *, prefix: int) -> Tensor:
    """Pool tokens into features, in the tokens' dtype.

    Args:
        tokens: (B, T, D), the CLS token first where there is one.
        pool: "cls", "mean" (of the grid's tokens) or "cls+mean" (side by side).
        prefix: tokens before those of the grid: CLS, registers, distillation.

    Returns:
        (B, D), or (B, 2 D) for "cls+mean".
    """
    if pool == "cls":
        return tokens[:, 0]
    mean = tokens[:, prefix:].mean(dim=1)
    return mean if pool == "mean" else torch.cat((tokens[:, 0], mean), dim=1)
