"""From a file to what a network sees. One definition for training, evaluation, inference and export."""

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Compose, MapTransform
from monai.utils import CompInitMode, instantiate
from torch.nn.functional import interpolate

from vivid_monai.errors import VividError
from vivid_monai.images.geometry import centring, resizing
from vivid_monai.images.read import read_image


class ReadImaged(MapTransform):
    """Path → float32 tensor (slices, H, W) in [0, 1], by :func:`vivid_monai.images.read.read_image`.

    An item's ``"slice"`` (int), where it has one, is the slice of the NIfTI volume to read.

    Args:
        keys: keys that hold paths.
        window: (centre, width) for all DICOM and NIfTI files, or None for what each file says.
        slices: 1, or 3 for a NIfTI slice between its neighbours.

    Raises:
        ImageError: the file cannot be used (inside a ``Compose`` as the cause of MONAI's RuntimeError).
    """

    def __init__(self, keys: KeysCollection, *, window: tuple[float, float] | None = None, slices: int = 1) -> None:
        super().__init__(keys)
        self.window, self.slices = window, slices

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.keys:
            d[key] = torch.from_numpy(self._read(d[key], d.get("slice")))
        return d

    def _read(self, path: Any, index: int | None) -> np.ndarray:
        return read_image(path, slice=index, slices=self.slices, window=self.window)


class ResizeAntialiasedd(MapTransform):
    """Scale (C, H, W) images with a filter as wide as the reduction needs.

    This is PyTorch's antialiased interpolation, which equals Pillow's to 2e-5. MONAI's ``Resized`` offers plain
    interpolation, which aliases ribs and catheters when 1024 px become 224, or a Gaussian that takes 50 times as long.

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

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.keys:
            height, width = d[key].shape[-2:]
            target = target_size((height, width), self.size, self.side)
            if target != (height, width):
                d[key] = interpolate(d[key][None], target, mode=self.interpolation, antialias=True)[0]
        return d


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


class ToBytesd(MapTransform):
    """Float tensor in [0, 1] → uint8 in [0, 255], rounded; values outside are clipped.

    What a display would show, at a quarter of the memory. Because every path through the package takes this step, an
    image from the cache and the same image from its file are equal bit for bit.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.keys:
            image = d[key].as_tensor() if isinstance(d[key], MetaTensor) else d[key]
            d[key] = image.clamp(0, 1).mul(255).round().to(torch.uint8)
        return d


_lock = threading.Lock()
_inside = 0
_before = True


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Let MONAI transforms return plain tensors within the block: the same values in half the time.

    The switch is MONAI's and one for the whole process. Blocks may overlap between threads: the first one in turns
    tracking off, the last one out puts back what was there.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = get_track_meta()
            set_track_meta(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                set_track_meta(_before)


Stage = Literal["stored", "unit", "normal"]
STAGES: tuple[Stage, ...] = ("stored", "unit", "normal")
"""The parts of every preprocessing, in order: up to what a cache holds, up to values in [0, 1], up to the network."""


def transform_of(config: Sequence[Mapping[str, Any]]) -> Compose:
    """The transforms that a list of configs says; names without a dot are MONAI's."""
    made = []
    for one in config:
        options = {name: value for name, value in one.items() if name != "_target_"}
        target = one["_target_"]
        path = target if "." in target else f"monai.transforms.{target}"
        made.append(instantiate(path, CompInitMode.DEFAULT, **options))
    return Compose(made)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How images become network input. Belongs to the weights and is stored with them.

    Args:
        size: height and width of the result, pixels.
        channels: 1, or 3 for weights of colour photographs (the grey image is repeated).
        mean, std: per channel, of images in [0, 1]; one number stands for all channels.
        resize: ``"pad"`` fits the whole image into the square and fills up with black; ``"crop"`` makes the short side
            `resize_to` long and cuts the square out of the middle, both with the aspect ratio kept; ``"stretch"``
            makes both sides `resize_to` long, and cuts the square out of the middle where that is larger.
        resize_to: pixels before the cut, at least `size`, which None stands for; ``"pad"`` cuts nothing.
        interpolation: ``"bilinear"`` or ``"bicubic"``, antialiased.
        window: (centre, width) for DICOM and NIfTI, in HU for CT; None: what each file says.
        slices: 1, or 3 for a slice of a NIfTI volume between its two neighbours. With three channels the slices are
            the channels; with one, the result has three channels all the same, each normalised as that one.

    Raises:
        VividError: a value that cannot be meant.
    """

    size: int = 224
    channels: int = 1
    mean: float | tuple[float, ...] = 0.5
    std: float | tuple[float, ...] = 0.25
    resize: Literal["pad", "crop", "stretch"] = "pad"
    resize_to: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    window: tuple[float, float] | None = None
    slices: int = 1

    kind: ClassVar[str] = "image"
    stored_dtype: ClassVar[np.dtype] = np.dtype(np.uint8)

    def __post_init__(self) -> None:
        _require(_whole(self.size) and self.size > 0, "size", self.size, "a positive whole number")
        _require(_whole(self.channels) and self.channels in (1, 3), "channels", self.channels, "1 or 3")
        _require(self.resize in _SIDES, "resize", self.resize, "pad, crop or stretch")
        to = self.size if self.resize_to is None else self.resize_to
        object.__setattr__(self, "resize_to", to)
        fits = _whole(to) and (to == self.size if self.resize == "pad" else to >= self.size)
        allowed = f"{self.size}, as nothing is cut" if self.resize == "pad" else f"a whole number from {self.size} on"
        _require(fits, "resize_to", to, allowed)
        _require(_whole(self.slices) and self.slices in (1, 3), "slices", self.slices, "1 or 3")
        _require(
            self.interpolation in ("bilinear", "bicubic"), "interpolation", self.interpolation, "bilinear or bicubic"
        )
        for name in ("mean", "std"):
            numbers = _numbers(name, getattr(self, name))
            per_channel = numbers * self.channels if len(numbers) == 1 else numbers
            _require(len(per_channel) == self.channels, name, numbers, f"1 or {self.channels} numbers")
            object.__setattr__(self, name, per_channel)
        _require(min(_numbers("std", self.std)) > 0, "std", self.std, "positive")
        if self.window is not None:
            window = _numbers("window", self.window)
            _require(len(window) == 2 and window[1] > 0, "window", window, "(centre, width) with width > 0")
            object.__setattr__(self, "window", window)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :meth:`from_dict` makes an equal object of them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """The object that `values` came from.

        Raises:
            VividError: a missing key (nothing is filled in: a default could differ from what the weights saw), an
                unknown key or a bad value.
        """
        known = {field.name for field in fields(cls)}
        if values.keys() != known:
            missing, unknown = sorted(known - values.keys()), sorted(values.keys() - known)
            raise VividError(f"preprocess: missing keys {missing}, unknown keys {unknown}")
        return cls(**values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the network's input, without the batch: (C, size, size). C is `channels`, or 3 of three slices."""
        return (max(self.channels, self.slices), self.size, self.size)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of what a cache holds: (slices, size, size)."""
        return (self.slices, self.size, self.size)

    def stored_dict(self) -> dict[str, Any]:
        """Those of the plain values that what a cache holds depends on."""
        later = ("channels", "mean", "std")
        return {name: value for name, value in self.to_dict().items() if name not in later}

    def config(
        self,
        keys: KeysCollection = "image",
        *,
        module: str = "vivid_monai.images.preprocess",
        stages: Sequence[Stage] = STAGES,
    ) -> list[dict[str, Any]]:
        """The transforms as a MONAI bundle config (a ``ConfigParser`` makes them of it): path → network input.

        Args:
            keys: keys of an item that hold paths.
            module: where this file is found by whoever reads the config.
            stages: a part of them. ``"stored"``: path → uint8 (slices, size, size), what a cache holds; ``"unit"``:
                → float32 in [0, 1], what augmentation works on; ``"normal"``: → float32 (C, size, size), normalised.
        """
        square = [self.size, self.size]
        repeat = self.slices // self.channels if self.slices > self.channels else 1
        mean, std = (list(_numbers(name, getattr(self, name))) * repeat for name in ("mean", "std"))
        fit = ("SpatialPadd", {"spatial_size": square}) if self.resize == "pad" else (
            "CenterSpatialCropd", {"roi_size": square}
        )  # fmt: skip
        steps: dict[Stage, list[tuple[str, dict[str, Any]]]] = {
            "stored": [
                (f"{module}.ReadImaged", {"window": self.window and list(self.window), "slices": self.slices}),
                (
                    f"{module}.ResizeAntialiasedd",
                    {"size": self.resize_to, "side": _SIDES[self.resize], "interpolation": self.interpolation},
                ),
                fit,
                (f"{module}.ToBytesd", {}),
            ],
            "unit": [("ScaleIntensityRanged", {"a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1})],
            "normal": [
                *([("RepeatChanneld", {"repeats": self.channels})] if self.channels > self.slices else []),
                ("NormalizeIntensityd", {"subtrahend": mean, "divisor": std, "channel_wise": True}),
            ],
        }
        return [{"_target_": name, "keys": keys, **options} for stage in stages for name, options in steps[stage]]

    def transform(self, keys: KeysCollection = "image", *, stages: Sequence[Stage] = STAGES) -> Compose:
        """The transforms of :meth:`config`. Nothing in them is random."""
        return transform_of(self.config(keys, stages=stages))

    def unit(self, stored: torch.Tensor) -> torch.Tensor:
        """A batch of what a cache holds → float32 in [0, 1]: the stage ``"unit"`` on a batch at once."""
        return stored / 255

    def matrix(self, spatial: Sequence[int]) -> np.ndarray:
        """Index (row, column) of a pixel of the image → that of the network's grid; see :mod:`.geometry`.

        Args:
            spatial: height and width of the image as it is read.

        Returns:
            float64 (3, 3).
        """
        between = target_size(spatial, self.resize_to or self.size, _SIDES[self.resize])
        return centring(between, (self.size, self.size)) @ resizing(spatial, between)


def preprocess_from_dict(values: Mapping[str, Any]) -> Preprocess:
    """The preprocessing that ``to_dict`` made `values` of; where they name no kind, it is of images.

    Raises:
        VividError: an unknown kind; as the kind's own ``from_dict``.
    """
    kind = values.get("kind", "image")
    if kind not in KINDS:
        raise VividError(f"preprocess: kind must be {' or '.join(KINDS)}, not {kind!r}")
    return KINDS[kind].from_dict({name: value for name, value in values.items() if name != "kind"})


KINDS = {kind.kind: kind for kind in (Preprocess,)}
"""Kinds of preprocessing, by the word that is stored with the weights."""

_SIDES: dict[str, Literal["longest", "shortest", "both"]] = {"pad": "longest", "crop": "shortest", "stretch": "both"}


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise VividError(f"preprocess: {name} must be {expected}, not {value!r}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, Sequence) else [value]
    ok = len(values) > 0 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    _require(ok, name, value, "numbers")
    return tuple(float(v) for v in values)
