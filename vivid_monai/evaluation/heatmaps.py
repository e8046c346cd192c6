"""Which parts of an image speak for a finding: one definition for every model that answers images."""

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

GRID = 7
"""Cells along each side of an image."""
FAINT = 0.05
"""Log odds: where no cell gives more, a map is not shown; it changes a probability by 1.3 percentage points at most."""
SHOWN = 2
"""Findings of an image that have maps, the most probable ones."""
_COLOURS = matplotlib.colormaps["inferno"]
_STRONGEST = 0.75  # opacity of the map where it is highest


def heat_maps(
    probabilities: Callable[[Tensor], NDArray], image: Tensor, findings: Sequence[int], *, batch_size: int = 16
) -> NDArray[np.float32]:
    """By how much the log odds of findings fall when a cell of an image is covered, cell by cell.

    Covered is: replaced by the mean of the image, which takes away what is there (Zeiler and Fergus 2014,
    arXiv:1311.2901) and adds a grey square, which black background may show. It needs no gradient and no knowledge of
    the model, so it is the same for ViT, convolutions, any pooling and any runtime. An even image has a map of zeros,
    and so has a finding that the head was not fitted to. What two cells show alike, such as both halves of a large
    heart, may be missed: the other one is still seen.

    Args:
        probabilities: preprocessed images (B, C, H, W) → (B, F) in [0, 1], each image by itself.
        image: float32 (C, H, W), preprocessed.
        findings: K columns of the probabilities.
        batch_size: images that are asked at once; GRID ** 2 + 1 are asked in all.

    Returns:
        float32 (K, GRID, GRID); below 0 what speaks against the finding.
    """
    height, width = image.shape[1:]
    rows, columns = (np.arange(side) * GRID // side for side in (height, width))
    cells = torch.from_numpy(rows[:, None] * GRID + columns)
    mean = image.mean((1, 2), keepdim=True)
    covered = (torch.where(cells == cell, mean, image) for cell in range(-1, GRID**2))  # the first of them as it is
    asked = torch.stack(list(covered)).split(batch_size)
    answers = np.concatenate([np.asarray(probabilities(batch), np.float64) for batch in asked])[:, list(findings)]
    p = np.clip(answers, 1e-6, 1 - 1e-6)
    odds = np.log(p / (1 - p))
    return (odds[0] - odds[1:]).T.reshape(-1, GRID, GRID).astype(np.float32)


def most_probable(probabilities: NDArray, candidates: Sequence[int]) -> list[int]:
    """Of the candidates, at most :data:`SHOWN` columns of the probabilities (F,), the highest first."""
    return sorted(candidates, key=lambda column: -probabilities[column])[:SHOWN]


def is_faint(heat: NDArray[np.float32]) -> bool:
    """Whether no cell of a map speaks for its finding enough to be shown."""
    return not float(heat.max()) >= FAINT


def blend(image: Image.Image, values: NDArray[np.float32], *, highest: float | None = None) -> Image.Image:
    """An RGB image with a map (h, w) over it, the clearer the higher, from 0 up to ``highest``, else its maximum."""
    highest = float(values.max()) if highest is None else highest
    relative = np.clip(values / highest, 0, 1) if highest > 0 else np.zeros_like(values)
    smooth = Image.fromarray(relative.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    strength = np.asarray(smooth)
    opacity = _STRONGEST * np.sqrt(strength)[..., None]
    mixed = (1 - opacity) * np.asarray(image) + opacity * _COLOURS(strength, bytes=True)[..., :3]
    return Image.fromarray(mixed.round().astype(np.uint8))


def colour_bar(width: int, height: int) -> Image.Image:
    """The colours of :func:`blend` over mid grey, from 0 to the highest."""
    ramp = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    return blend(Image.new("RGB", (width, height), (128, 128, 128)), ramp)
