"""MONAI's DenseNet-121 of images or volumes as a backbone: its last feature map, cell by cell, as tokens."""

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from monai.networks.nets import densenet as monai_densenet
from torch import Tensor, nn
from torch.nn import functional as F

from vivid_monai.errors import VividError

SMALLEST = 29  # pixels, of which one cell is left


class DenseNet(nn.Module):
    """DenseNet-121 (Huang et al. 2017, arXiv:1608.06993) that returns normalised tokens.

    The grid has ⌈⌈pixels / 2⌉ / 2⌉ cells, halved three times and rounded down, along each axis, and no token before it.
    Attributes: see `vivid_monai.networks.classifier.BACKBONES`; `architecture` is "densenet121" or "densenet121-3d".

    Args:
        img_size: pixels or voxels of an image along each axis, or one number for all.
        in_channels: channels of an image.
        spatial_dims: 2 for images, 3 for volumes.
        growth: channels that a layer adds; 32 in the paper.
        norm: "group" or "batch", as of :class:`~vivid_monai.networks.resnet.ResNet`.

    Raises:
        VividError: an argument is out of its range.
    """

    _shape: list[int]  # image_shape, in the form TorchScript compares

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        spatial_dims: int = 2,
        growth: int = 32,
        norm: str = "group",
    ) -> None:
        super().__init__()
        size = [img_size] * spatial_dims if isinstance(img_size, int) else list(img_size)
        if spatial_dims not in (2, 3) or len(size) != spatial_dims:
            raise VividError(f"spatial_dims={spatial_dims} must be 2 or 3, and {img_size=} one number or one an axis")
        if min(size) < SMALLEST or in_channels < 1 or growth < 1 or norm not in ("group", "batch"):
            raise VividError(
                f"{img_size=} must be at least {SMALLEST}, {in_channels=} and {growth=} positive, {norm=} group, batch"
            )
        self.config: dict[str, Any] = {
            "img_size": size,
            "in_channels": in_channels,
            "spatial_dims": spatial_dims,
            "growth": growth,
            **({"norm": norm} if norm != "group" else {}),
        }
        self.architecture = "densenet121" + ("-3d" if spatial_dims == 3 else "")
        self.image_shape = (in_channels, *size)
        self._shape = [in_channels, *size]
        self.prefix = 0
        self.grid = tuple(-(-pixels // 4) // 8 for pixels in size)
        net: Any = monai_densenet.DenseNet(
            spatial_dims,
            in_channels,
            out_channels=1,
            init_features=2 * growth,
            growth_rate=growth,
            norm=("group", {"num_groups": gcd(32, growth)}) if norm == "group" else "batch",
        )
        self.features = net.features
        self.embed_dim = net.class_layers.out.in_features
        self.norm = nn.LayerNorm(self.embed_dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of a batch of images.

        Args:
            x: (B, C, *spatial) float, normalised as the weights' preprocessing says.

        Returns:
            (B, prod(grid), D), the last axis running fastest, after a LayerNorm as a ViT's.

        Raises:
            VividError: the images are not of the size the network was built for.
        """
        if not torch.jit.is_tracing() and list(x.shape[1:]) != self._shape:
            raise VividError(
                f"a batch of shape {list(x.shape)} does not fit a DenseNet built for images {self.image_shape}"
            )
        return self.norm(F.relu(self.features(x)).flatten(2).transpose(1, 2))
