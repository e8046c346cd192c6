"""What an image looks like from afar, where a network may look past what shows that it is no chest; for bundles too."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

SIDE = 8
"""Pixels of the thumbnail's side: a part of the body and its position are seen, no patient is."""
_LEAST = 1e-3  # contrast of an image that has none


def appearance(images: Tensor) -> Tensor:
    """A thumbnail of mean 0 and contrast 1, and the mean and the contrast that were taken from it.

    Args:
        images: (B, C, H, W) float, normalised as the network takes them; of several channels their mean.

    Returns:
        (B, SIDE² + 2) float32: the thumbnail row by row, its mean, the logarithm of its standard deviation.
    """
    thumbnail = adaptive_avg_pool2d(images.float().mean(1, keepdim=True), SIDE).flatten(1)
    mean = thumbnail.mean(1, keepdim=True)
    contrast = thumbnail.std(1, keepdim=True, correction=0).clamp(min=_LEAST)
    return torch.cat(((thumbnail - mean) / contrast, mean, contrast.log()), dim=1)
