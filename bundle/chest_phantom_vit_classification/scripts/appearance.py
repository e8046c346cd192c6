"""What an image looks like from afar, whatever a network makes of it: where edges run, its light; for bundles too."""

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

SIDE = 32
"""Pixels of the thumbnail's side: parts of the body are seen, no patient is."""
CELLS = 4
"""Parts into which its height and its width are cut."""
DIRECTIONS = 8
"""Directions of an edge's gradient that are told apart."""
WIDTH = CELLS**2 * DIRECTIONS + 2
"""Numbers that an appearance has."""
_LEAST = 1e-3  # contrast of an image that has none
_NO_EDGE = 1e-4


def appearance(images: Tensor) -> Tensor:
    """Histograms of oriented gradients of a thumbnail (Dalal and Triggs 2005, doi:10.1109/CVPR.2005.177) and its light.

    A gradient counts with its length, and is shared by its neighbouring directions: by the square of the cosine to
    them. From dark to bright is another direction than from bright to dark. Histograms are divided by their common
    mean, so contrast does not matter, and their roots taken.

    Args:
        images: (B, C, H, W) float, normalised as the network takes them; of several channels their mean.

    Returns:
        (B, WIDTH) float32: for each direction, from +x on towards +y (down), the cells row by row; then the mean of the
        thumbnail and the logarithm of its standard deviation.
    """
    thumbnail = adaptive_avg_pool2d(images.float().mean(1, keepdim=True), SIDE)
    framed = pad(thumbnail, (1, 1, 1, 1), mode="replicate")
    across = framed[:, :, 1:-1, 2:] - framed[:, :, 1:-1, :-2]
    down = framed[:, :, 2:, 1:-1] - framed[:, :, :-2, 1:-1]
    angles = torch.arange(DIRECTIONS, device=images.device) * (2 * math.pi / DIRECTIONS)
    cosine, sine = angles.cos().view(1, -1, 1, 1), angles.sin().view(1, -1, 1, 1)
    length = torch.sqrt(across * across + down * down)
    along = torch.relu(across * cosine + down * sine)  # length · cosine, where that is positive
    histograms = adaptive_avg_pool2d(along * along / length.clamp(min=1e-12), CELLS).flatten(1)
    histograms = torch.sqrt(histograms / (histograms.mean(1, keepdim=True) + _NO_EDGE))
    light = adaptive_avg_pool2d(thumbnail, 8).flatten(1)
    contrast = light.std(1, keepdim=True, correction=0).clamp(min=_LEAST)
    return torch.cat((histograms, light.mean(1, keepdim=True), contrast.log()), dim=1)
