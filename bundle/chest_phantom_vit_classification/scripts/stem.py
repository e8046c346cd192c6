"""The convolutional stem of a ViT. This file goes into bundles and Hugging Face folders: it needs torch alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import VividError


class ConvStem(nn.Sequential):
    """Patches embedded by 3-wide convolutions, two for each halving, instead of one as wide as a patch.

    After Xiao et al. 2021 (arXiv:2106.14881): a ViT then learns from fewer images. Theirs has one convolution for each
    halving; with a second one, images are told apart better here, and with group norm much worse (`docs/method.md`).
    While training, an image's tokens depend on the images beside it, as in any network with batch norm.

    Maps (B, C, *spatial) to (B, width, *grid). The last layer is a 1-wide convolution with a bias: as a patch
    projection of the layers before it.

    Args:
        in_channels: channels C of an image.
        width: of a token; halved with each step towards the image.
        patch_size: of each of the two or three axes, powers of two.

    Raises:
        VividError: an argument is out of its range.
    """

    def __init__(self, in_channels: int, width: int, patch_size: Sequence[int]) -> None:
        steps = max(patch_size).bit_length() - 1
        if steps < 1 or any(side.bit_count() != 1 for side in patch_size) or width % (1 << (steps - 1)):
            raise VividError(
                f"stem='conv' needs patch_size={list(patch_size)} to be powers of two, at least one over 1, and "
                f"width={width} to be a multiple of {1 << max(steps - 1, 0)}"
            )
        kinds: dict[int, tuple[Any, Any]] = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}
        conv, norm = kinds[len(patch_size)]
        layers: list[nn.Module] = []
        before = in_channels
        for step in range(steps):
            after = width >> (steps - 1 - step)
            halved = tuple(2 if side >> step > 1 else 1 for side in patch_size)
            for channels, stride in ((before, halved), (after, 1)):
                layers += [conv(channels, after, 3, stride=stride, padding=1, bias=False), norm(after), nn.ReLU()]
            before = after
        super().__init__(*layers, conv(width, width, 1))

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, *spatial) → (B, width, *grid)."""
        for i, layer in enumerate(self):
            input = layer(input)
            if i == 0:
                # A fifth faster on CPUs, whatever the weights' own memory format: 86 → 71 ms for a default step's stem.
                input = input.contiguous(
                    memory_format=torch.channels_last if input.dim() == 4 else torch.channels_last_3d
                )
        return input
