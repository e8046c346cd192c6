"""Pooling of a backbone's tokens into one feature vector per image."""

import torch
from torch import Tensor

from .errors import VividError
from .spd import SPD

POOLS = ("cls", "mean", "cls+mean", "pooled", "spd")


def choose_pool(asked: str | None, *, cls: bool, patches: bool, pooled: bool = True, spd: bool = False) -> str:
    """The pooling to use: the one asked for, or the network's default.

    Args:
        asked: one of `POOLS`; None: the first that there is of "spd", "cls", "pooled" and "mean".
        cls: whether the network has a CLS token.
        patches: whether it gives tokens of a grid.
        pooled: whether it has a pooled output of its own.
        spd: whether it has an SPD that was trained with it.

    Raises:
        VividError: `asked` is none of `POOLS`, or the network lacks it.
    """
    offered = {"cls": cls, "mean": patches, "cls+mean": cls and patches, "pooled": pooled, "spd": spd}
    has = [pool for pool in POOLS if offered[pool]]
    if asked is None:
        return "spd" if spd else "cls" if cls else "pooled" if pooled else "mean"
    if asked not in POOLS:
        raise VividError(f"pool={asked!r} must be one of {', '.join(POOLS)}")
    if asked not in has:
        raise VividError(f"pool={asked!r}: this network has no such tokens or output; it has {', '.join(has)}")
    return asked


def pool_tokens(tokens: Tensor, pool: str, *, prefix: int) -> Tensor:
    """Pool tokens into features, in the tokens' dtype.

    Args:
        tokens: (B, T, D), the CLS token first where there is one.
        pool: "cls", "mean" (of the grid's tokens), "cls+mean" (side by side) or "pooled" (the grid's only token).
        prefix: tokens before those of the grid: CLS, registers, distillation.

    Returns:
        (B, D), or (B, 2 D) for "cls+mean".
    """
    if pool == "cls":
        return tokens[:, 0]
    mean = tokens[:, prefix:].mean(dim=1)
    return torch.cat((tokens[:, 0], mean), dim=1) if pool == "cls+mean" else mean


def pooled_width(dim: int, pool: str, spd: SPD | None) -> int:
    """Width of the features that a pool makes of tokens of width `dim`.

    Raises:
        VividError: an SPD of another width.
    """
    if pool != "spd" or spd is None:
        return dim * (2 if pool == "cls+mean" else 1)
    if spd.dim != dim:
        raise VividError(f"the SPD reads tokens of width {spd.dim}, the backbone gives {dim}: they do not belong")
    return spd.out_dim
