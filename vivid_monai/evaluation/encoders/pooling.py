"""From tokens to one vector per image."""

import torch
from torch import Tensor

from vivid_monai.errors import VividError

POOLS = ("cls", "mean", "cls+mean", "pooled")


def choose_pool(asked: str, *, cls: bool, patches: bool) -> str:
    """The pooling to use: the one asked for where the network has such tokens, otherwise its own pooled output.

    Args:
        asked: one of `POOLS`.
        cls: whether the network has a CLS token.
        patches: whether it gives tokens per patch.

    Raises:
        VividError: `asked` is none of `POOLS`.
    """
    if asked not in POOLS:
        raise VividError(f"pool={asked!r} must be one of {', '.join(POOLS)}")
    has = {"cls": cls, "mean": patches, "cls+mean": cls and patches, "pooled": True}
    return asked if has[asked] else "pooled"


def pool_tokens(tokens: Tensor, pool: str, *, prefix: int) -> Tensor:
    """Pool tokens into features.

    Args:
        tokens: (B, T, D), the CLS token first where there is one.
        pool: "cls", "mean" (of the patches) or "cls+mean" (side by side).
        prefix: tokens before those of the patches: CLS, registers, distillation.

    Returns:
        (B, D), or (B, 2 D) for "cls+mean", float32.
    """
    tokens = tokens.float()
    if pool == "cls":
        return tokens[:, 0]
    mean = tokens[:, prefix:].mean(dim=1)
    return mean if pool == "mean" else torch.cat((tokens[:, 0], mean), dim=1)
