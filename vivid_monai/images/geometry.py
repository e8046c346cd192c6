"""Affine matrices between the pixels of an image and the network's grid; points, boxes and masks that follow them.

Coordinates are indices along the array's axes, (row, column) in 2-D, and whole numbers are the centres of pixels or
voxels. A matrix is (S + 1, S + 1) for S axes, float64: it takes an index of one grid to that of another. Matrices are
combined by ``@`` and inverted by ``np.linalg.inv``.

Boxes are (n, 2 S): the low corner, then the high one. Their corners are measured from the outer edge of the first
pixel, so that (0, 0, H, W) is the whole image, as MONAI's box mode ``"xyxy"`` and the manifest have it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from vivid_monai.errors import VividError


def resizing(before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """Matrix of scaling a grid of one shape to another shape that covers the same extent."""
    scale = np.divide(after, before)
    return _affine(np.diag(scale), scale / 2 - 0.5)


def centring(before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """Matrix of MONAI's ``SpatialPad`` (axes that grow) and ``CenterSpatialCrop`` (axes that shrink)."""
    offset = [(b - a) // 2 if b >= a else b // 2 - a // 2 for a, b in zip(before, after, strict=True)]
    return _affine(np.eye(len(offset)), np.array(offset, float))


def mirroring(shape: Sequence[int], axis: int) -> np.ndarray:
    """Matrix of reversing one axis of a grid."""
    matrix = np.eye(len(shape) + 1)
    matrix[axis, axis], matrix[axis, -1] = -1, shape[axis] - 1
    return matrix


def move_points(matrix: Any, points: Any) -> Tensor:
    """Points (n, S) on the other grid, in their own dtype."""
    matrix, points = torch.as_tensor(matrix), torch.as_tensor(points)
    matrix = matrix.to(points.device, torch.float64)
    return (points.double() @ matrix[:-1, :-1].T + matrix[:-1, -1]).to(points.dtype)


def move_boxes(matrix: Any, boxes: Any) -> Tensor:
    """Boxes (n, 2 S) on the other grid, in their own dtype: each the smallest that holds the turned one, not cut."""
    return _boxes(matrix, boxes, lambda linear, half: half @ linear.abs().T)


def move_boxes_back(matrix: Any, boxes: Any) -> Tensor:
    """Boxes (n, 2 S) that :func:`move_boxes` with this matrix makes `boxes` of, where its inverse would enlarge them.

    Raises:
        VividError: boxes that are turned by 45 degrees cannot be told from others.
    """
    try:
        return _boxes(
            torch.linalg.inv(torch.as_tensor(matrix, dtype=torch.float64)),
            boxes,
            lambda linear, half: torch.linalg.solve(torch.linalg.inv(linear).abs(), half.T).T.clamp(min=0),
        )
    except torch.linalg.LinAlgError as error:
        raise VividError(f"boxes cannot be taken back along a matrix that mixes its axes evenly: {error}") from error


def _boxes(matrix: Any, boxes: Any, sizes: Any) -> Tensor:
    matrix, boxes = torch.as_tensor(matrix), torch.as_tensor(boxes)
    matrix = matrix.to(boxes.device, torch.float64)
    low, high = (boxes.double() - 0.5).tensor_split(2, dim=1)
    linear = matrix[:-1, :-1]
    centre = (low + high) / 2 @ linear.T + matrix[:-1, -1]
    half = sizes(linear, (high - low) / 2)
    return (torch.cat([centre - half, centre + half], dim=1) + 0.5).to(boxes.dtype)


def resample(image: Tensor, matrix: Any, shape: Sequence[int], *, mode: str = "nearest") -> Tensor:
    """An image or mask (C, *spatial) on another grid, in its own dtype.

    Args:
        matrix: index of the image → index of the result.
        shape: of the result's axes.
        mode: ``"nearest"``, or ``"bilinear"`` (trilinear in 3-D). Nothing is smoothed before a reduction.

    Returns:
        (C, *shape); zero where the image does not reach.
    """
    back = torch.linalg.inv(torch.as_tensor(matrix, dtype=torch.float64))
    grid = sampling_grid(back[None], image.shape[1:], shape)
    moved = grid_sample(image[None].double(), grid, mode=mode, padding_mode="zeros", align_corners=False)[0]
    return moved.to(image.dtype) if image.dtype.is_floating_point or mode == "nearest" else moved


def sampling_grid(back: Tensor, spatial: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Where ``torch.nn.functional.grid_sample`` (``align_corners=False``) shall look.

    Args:
        back: float64 (B, S + 1, S + 1), index of the result → index of the image.
        spatial: of the image's axes.
        shape: of the result's axes.

    Returns:
        float64 (B, *shape, S), last axis first, the image from -1 to 1.
    """
    axes = [torch.arange(n, dtype=torch.float64, device=back.device) for n in shape]
    extent = torch.tensor(list(spatial), dtype=torch.float64, device=back.device)
    # A sum over axes, each of its own length until now: in 3-D the points of a grid, as a list, would take gigabytes.
    index: Any = back[(slice(None), *[None] * len(shape), slice(None, -1), -1)]
    for axis, places in enumerate(axes):
        along = places.reshape([-1 if other == axis else 1 for other in range(len(shape))])
        index = index + along[None, ..., None] * back[(slice(None), *[None] * len(shape), slice(None, -1), axis)]
    return ((2 * index + 1) / extent - 1).flip(-1)


def _affine(linear: np.ndarray, offset: np.ndarray) -> np.ndarray:
    matrix = np.eye(len(offset) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = linear, offset
    return matrix
