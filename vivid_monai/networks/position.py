"""Learned position embeddings on another patch grid."""

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from vivid_monai.errors import VividError


def square_grid(positions: int) -> tuple[int, int]:
    """The (rows, columns) of a square grid of `positions` patches; VividError where no square has that many."""
    side = isqrt(positions)
    if side * side != positions:
        raise VividError(f"{positions} position embeddings are no square grid: give the checkpoint's image size")
    return side, side


def resize_position_embeddings(embeddings: Tensor, *, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Interpolate position embeddings from one grid of patches to another.

    Bicubic with antialiasing, pixel centres aligned at half positions, computed in float32. Where the grids are equal
    the very same tensor comes back.

    Args:
        embeddings: (1, rows * columns, D), row by row, without an entry for the CLS token.
        source: (rows, columns) of the grid the embeddings belong to.
        target: (rows, columns) wanted.

    Returns:
        (1, target rows * target columns, D), of the dtype given.

    Raises:
        VividError: the number of embeddings is not that of the source grid.
    """
    if embeddings.ndim != 3 or embeddings.shape[:2] != (1, source[0] * source[1]):
        raise VividError(
            f"position embeddings of shape {tuple(embeddings.shape)} do not fill a grid of {source[0]} x {source[1]}"
        )
    if source == target:
        return embeddings
    plane = embeddings.float().transpose(1, 2).unflatten(2, source)
    resized = F.interpolate(plane, size=target, mode="bicubic", antialias=True, align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(embeddings.dtype, memory_format=torch.contiguous_format)
