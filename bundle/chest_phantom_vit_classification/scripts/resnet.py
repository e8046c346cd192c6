"""MONAI's ResNet of images or volumes as a backbone: its last feature map, cell by cell, as tokens."""

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from monai.networks.nets import resnet as monai_resnet
from torch import Tensor, nn

from .errors import VividError

LAYERS = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
}
STRIDE = 32  # of the last feature map


class ResNet(nn.Module):
    """ResNet (He et al. 2016, arXiv:1512.03385) that returns normalised tokens.

    With group norm (Wu and He 2018, arXiv:1803.08494) an image's tokens do not depend on the images beside it, so one
    image is a batch, and micro-batches and processes give the gradients of the whole batch: for volumes. Batch norm
    is that of the paper and of MONAI.

    The grid has ⌈pixels / 32⌉ cells along each axis, and no token before it. Attributes: see
    `scripts.classifier.BACKBONES`; `architecture` is such as "resnet18" or "resnet18-3d".

    Args:
        img_size: pixels or voxels of an image along each axis, or one number for all.
        depth: 10, 18, 34 or 50 layers.
        in_channels: channels of an image.
        spatial_dims: 2 for images, 3 for volumes.
        width: channels of the first stage, even; 64 in the paper.
        norm: "group" or "batch".

    Raises:
        VividError: an argument is out of its range.
    """

    _shape: list[int]  # image_shape, in the form TorchScript compares

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        depth: int = 18,
        in_channels: int = 1,
        spatial_dims: int = 2,
        width: int = 64,
        norm: str = "group",
    ) -> None:
        super().__init__()
        size = [img_size] * spatial_dims if isinstance(img_size, int) else list(img_size)
        if depth not in LAYERS or spatial_dims not in (2, 3) or len(size) != spatial_dims:
            raise VividError(
                f"depth={depth} must be one of {', '.join(map(str, LAYERS))}, spatial_dims={spatial_dims} 2 or 3, and "
                f"img_size={img_size} one number or one for each axis"
            )
        if min(size) < 1 or in_channels < 1 or width < 2 or width % 2 or norm not in ("group", "batch"):
            raise VividError(
                f"{img_size=}, {in_channels=} and {width=} must be positive, the width even, and {norm=} group or batch"
            )
        self.config: dict[str, Any] = {
            "img_size": size,
            "depth": depth,
            "in_channels": in_channels,
            "spatial_dims": spatial_dims,
            "width": width,
            **({"norm": norm} if norm != "group" else {}),
        }
        self.architecture = f"resnet{depth}" + ("-3d" if spatial_dims == 3 else "")
        self.image_shape = (in_channels, *size)
        self._shape = [in_channels, *size]
        self.prefix = 0
        self.grid = tuple(-(-pixels // STRIDE) for pixels in size)
        block, layers = LAYERS[depth]
        net = monai_resnet.ResNet(
            block,
            layers,
            [width << stage for stage in range(4)],
            spatial_dims=spatial_dims,
            n_input_channels=in_channels,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
        )
        # MONAI's `norm` reaches the first norm only.
        for name, module in list(net.named_modules()):
            if norm == "group" and isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                parent, _, last = name.rpartition(".")
                channels = module.num_features
                setattr(net.get_submodule(parent), last, nn.GroupNorm(gcd(32, channels // 2), channels))
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act, net.maxpool)
        self.stages = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)
        self.embed_dim = net.in_planes
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
                f"a batch of shape {list(x.shape)} does not fit a ResNet built for images {self.image_shape}"
            )
        return self.norm(self.stages(self.stem(x)).flatten(2).transpose(1, 2))
