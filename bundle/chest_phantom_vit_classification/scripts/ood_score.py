"""The out-of-distribution score of an image: its distance from the training images. This file goes into every bundle.

The distance is fitted by `OODDetector` of vivid-monai.
"""

import json
import math

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad

SIDE = 32
"""Pixels of the thumbnail's side: parts of the body are seen, no patient is."""
CELLS = 4
"""Parts into which its height and its width are cut."""
DIRECTIONS = 8
"""Directions of an edge's gradient that are told apart."""
WIDTH = CELLS**2 * DIRECTIONS + 2
"""Numbers of :func:`thumbnail_features`."""
_LEAST = 1e-3  # contrast of an image that has none
_NO_EDGE = 1e-4


def thumbnail_features(images: Tensor) -> Tensor:
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


class WithOODScore(nn.Module):
    """A classifier with an out-of-distribution score: images (B, C, H, W) → logits (B, F + 1).

    σ of the last column is the score d / (d + limit), where d is the distance of the image from the training images:
    over one half, the image is not to be assessed.

    Args:
        network: gives logits (B, F).
        path: the file of `save` of vivid-monai.
    """

    location: Tensor
    whitening: Tensor

    def __init__(self, network: nn.Module, path: str) -> None:
        super().__init__()
        self.network = network
        with safe_open(path, framework="pt") as file:
            for name in ("location", "whitening"):
                self.register_buffer(name, file.get_tensor(name), persistent=False)
            stored = {name: json.loads(text) for name, text in file.metadata().items()}
        settings = stored["vivid"]["config"] if "vivid" in stored else stored["vivid-assessment"]  # of version 1
        self.limit = float(settings["limit"])

    def forward(self, images: Tensor) -> Tensor:
        rows = thumbnail_features(images).double()
        distance = torch.linalg.vector_norm((rows - self.location) @ self.whitening, dim=1, keepdim=True)
        return torch.cat((self.network(images), (distance / self.limit).log().float()), dim=1)
