"""Our transforms of items, beside MONAI's: reading, antialiased resizing, and what a cache holds."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor
from nibabel.orientations import apply_orientation
from torch.nn.functional import interpolate

from .read import read_image
from .volume import AIR, Turned, read_volume, turned


class _Each(MapTransform):
    """One change of the value of every key."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self.change(data[key], data) for key in self.keys}}

    def change(self, value: Any, data: Mapping[Hashable, Any]) -> torch.Tensor:
        raise NotImplementedError


class ReadImaged(_Each):
    """Path → float32 tensor (slices, H, W) in [0, 1], by :func:`scripts.read.read_image`.

    Args:
        keys: keys that hold paths; an item's ``"slice"`` (int) is the slice of a NIfTI volume to read.
        window, slices: as of `read_image`.

    Raises:
        ImageError: the file cannot be used (inside a ``Compose`` as the cause of MONAI's RuntimeError).
    """

    def __init__(self, keys: KeysCollection, *, window: tuple[float, float] | None = None, slices: int = 1) -> None:
        super().__init__(keys)
        self.window, self.slices = window, slices

    def change(self, value: Any, data: Mapping[Hashable, Any]) -> torch.Tensor:
        return torch.from_numpy(read_image(value, slice=data.get("slice"), slices=self.slices, window=self.window))


class ResizeAntialiasedd(_Each):
    """Scale (C, H, W) images with a filter as wide as the reduction needs.

    PyTorch's antialiased interpolation equals Pillow's to 2e-5. MONAI's ``Resized`` aliases ribs and catheters when
    1024 px become 224, or takes 50 times as long with a Gaussian.

    Args:
        keys: keys that hold float tensors.
        size: pixels that the longest or shortest side gets, or both.
        side: ``"longest"`` (the image fits into a square of `size`) or ``"shortest"`` (it covers that square), with
            the aspect ratio kept; ``"both"`` makes it that square.
        interpolation: ``"bilinear"`` or ``"bicubic"`` (may overshoot the range of the input a little).
    """

    def __init__(
        self, keys: KeysCollection, size: int, *, side: Literal["longest", "shortest", "both"], interpolation: str
    ) -> None:
        super().__init__(keys)
        self.size, self.side, self.interpolation = size, side, interpolation

    def change(self, value: torch.Tensor, data: Mapping[Hashable, Any]) -> torch.Tensor:
        target = target_size(value.shape[-2:], self.size, self.side)
        if target == value.shape[-2:]:
            return value
        return interpolate(value[None], target, mode=self.interpolation, antialias=True)[0]


def target_size(spatial: Sequence[int], size: int, side: str) -> tuple[int, int]:
    """Height and width of an image after :class:`ResizeAntialiasedd`."""
    height, width = spatial
    if side == "longest":
        scale = size / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    if side == "shortest":  # rounded down, as torchvision, timm and transformers have it
        short = min(height, width)
        return size * height // short, size * width // short
    return size, size


class ToBytesd(_Each):
    """Float tensor in [0, 1] → uint8 in [0, 255], rounded; values outside are clipped.

    Every path through the package takes this step: an image from the cache and from its file are equal bit for bit.
    """

    def change(self, value: torch.Tensor, data: Mapping[Hashable, Any]) -> torch.Tensor:
        return convert_to_tensor(value).clamp(0, 1).mul(255).round().to(torch.uint8)


class ReadVolumed(_Each):
    """Path of a CT volume → float32 tensor (1, D, H, W) in HU, turned and resampled.

    Args:
        keys: keys that hold paths, as :func:`scripts.volume.read_volume` takes them.
        spacing, orientation: as of :class:`VolumePreprocess`.

    Raises:
        ImageError: the volume cannot be used (inside a ``Compose`` as the cause of MONAI's RuntimeError).
    """

    def __init__(self, keys: KeysCollection, *, spacing: Sequence[float], orientation: str) -> None:
        super().__init__(keys)
        self.spacing, self.orientation = spacing, orientation

    def change(self, value: Any, data: Mapping[Hashable, Any]) -> torch.Tensor:
        """Axis by axis, antialiased: PyTorch antialiases images only."""
        values, affine = read_volume(value)
        place = turned(values.shape, affine, self.orientation)
        volume = torch.from_numpy(np.ascontiguousarray(apply_orientation(values, place.turn), np.float32))
        depth, height, width = spaced_size(place, self.spacing)
        volume = interpolate(volume[:, None], (height, width), mode="bilinear", antialias=True)
        columns = volume.reshape(1, 1, len(volume), height * width)
        columns = interpolate(columns, (depth, height * width), mode="bilinear", antialias=True)
        return columns.reshape(1, depth, height, width)


def spaced_size(place: Turned, spacing: Sequence[float]) -> tuple[int, ...]:
    """Voxels of a turned volume at another spacing."""
    return tuple(max(1, round(n * old / new)) for n, old, new in zip(place.shape, place.spacing, spacing, strict=True))


class ToHounsfieldd(_Each):
    """Float tensor in HU → int16, rounded: what a cache holds. The window is applied after it."""

    def change(self, value: torch.Tensor, data: Mapping[Hashable, Any]) -> torch.Tensor:
        return convert_to_tensor(value).clamp(AIR, 32767).round().to(torch.int16)
