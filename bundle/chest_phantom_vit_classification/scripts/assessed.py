"""The network of a bundle with a word on how unlike its training images an image is. Goes into every bundle."""

import json

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .appearance import appearance


class Assessed(nn.Module):
    """Images (B, C, H, W) → (B, F + 1): the logits of a classifier, then that of the image's unlikeness.

    The unlikeness σ of the last column is d / (d + limit), d the distance of the image from the training images: over
    one half the image is not to be answered. Distance and limit: `Assessment` of vivid-monai.

    Args:
        network: gives logits (B, F).
        path: assessment.safetensors of its training images.
    """

    location: Tensor
    whitening: Tensor

    def __init__(self, network: nn.Module, path: str) -> None:
        super().__init__()
        self.network = network
        with safe_open(path, framework="pt") as file:
            for name in ("location", "whitening"):
                self.register_buffer(name, file.get_tensor(name), persistent=False)
            self.limit = float(json.loads(file.metadata()["vivid-assessment"])["limit"])

    def forward(self, images: Tensor) -> Tensor:
        rows = appearance(images).double()
        distance = torch.linalg.vector_norm((rows - self.location) @ self.whitening, dim=1, keepdim=True)
        return torch.cat((self.network(images), (distance / self.limit).log().float()), dim=1)
