"""From a file to what a network sees. One definition for training, evaluation, inference and export."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Compose
from monai.utils import CompInitMode, instantiate

from vivid_monai.errors import VividError, cut
from vivid_monai.images.geometry import centring, resizing
from vivid_monai.images.read import read_mask
from vivid_monai.images.transforms import (
    ReadImaged,
    ReadVolumed,
    ResizeAntialiasedd,
    ToBytesd,
    ToHounsfieldd,
    spaced_size,
    target_size,
)
from vivid_monai.images.volume import AIR, read_labels, turned, volume_geometry

_lock = threading.Lock()
_before: list[bool] = []  # of each block that is entered and not left


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Let MONAI transforms return plain tensors within the block: the same values in half the time.

    The switch is MONAI's and one for the whole process. Blocks may overlap between threads: the first one in turns
    tracking off, the last one out puts back what was there.
    """
    with _lock:
        _before.append(get_track_meta() if not _before else _before[0])
        set_track_meta(False)
    try:
        yield
    finally:
        with _lock:
            if (before := _before.pop()) and not _before:
                set_track_meta(before)


Stage = Literal["stored", "unit", "normal"]
STAGES: tuple[Stage, ...] = ("stored", "unit", "normal")
"""The parts of every preprocessing, in order: up to what a cache holds, up to values in [0, 1], up to the network."""

Steps = dict[Stage, list[tuple[str | type, dict[str, Any]]]]
"""Stage → transforms (ours, or the names of MONAI's) and their arguments."""

_SIDES: dict[str, Literal["longest", "shortest", "both"]] = {"pad": "longest", "crop": "shortest", "stretch": "both"}
_AXES = {letter: axis for axis, letters in enumerate(("LR", "AP", "SI")) for letter in letters}


def transform_of(config: Sequence[Mapping[str, Any]]) -> Compose:
    """The transforms that a list of configs says; names without a dot are MONAI's."""
    made = []
    for one in map(dict, config):
        target = one.pop("_target_")
        path = target if "." in target else f"monai.transforms.{target}"
        made.append(instantiate(path, CompInitMode.DEFAULT, **one))
    return Compose(made)


class BasePreprocess(ABC):
    """What every kind of preprocessing is: a frozen dataclass of plain values, and transforms that follow from them."""

    kind: ClassVar[str]  # of image
    stored_dtype: ClassVar[np.dtype]  # of what a cache holds
    _later: ClassVar[tuple[str, ...]]  # names of values that change nothing in what a cache holds

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the network's input, without the batch: (C, *spatial)."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of what a cache holds."""
        return self.shape

    @property
    def mirror_axis(self) -> int:
        """The axis of the grid, counted without the channel, along which left and right lie."""
        return 1

    @abstractmethod
    def _steps(self) -> Steps: ...

    @abstractmethod
    def unit(self, stored: torch.Tensor) -> torch.Tensor:
        """A batch of what a cache holds → float32 in [0, 1]: the stage ``"unit"`` on a batch at once."""

    @abstractmethod
    def row_matrix(self, row: Mapping[str, Any]) -> np.ndarray:
        """Index of a pixel of the row's image → that of the network's grid, float64 (S + 1, S + 1)."""

    @abstractmethod
    def read_mask(self, path: str, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """A mask of the row's image: uint8 (*spatial), and the matrix from its pixels to those of the image."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :func:`preprocess_from_dict` makes an equal object of them."""
        values: Any = asdict(self)  # type: ignore[call-overload]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The object that `values` came from; nothing is filled in: a default could differ from what the weights saw.

        Raises:
            VividError: a missing or unknown key, a bad value.
        """
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if values.keys() != known:
            missing, unknown = sorted(known - values.keys()), sorted(values.keys() - known)
            raise VividError(f"preprocess: missing keys {missing}, unknown keys {unknown}")
        return cls(**values)

    def stored_dict(self) -> dict[str, Any]:
        """The plain values that what a cache holds depends on."""
        return {name: value for name, value in self.to_dict().items() if name not in self._later}

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
            stages: a part of them. ``"stored"``: path → what a cache holds; ``"unit"``: → float32 in [0, 1], what
                augmentation works on; ``"normal"``: → float32 (C, *spatial), normalised.
        """
        return [
            {"_target_": one if isinstance(one, str) else f"{module}.{one.__name__}", "keys": keys, **options}
            for stage in stages
            for one, options in self._steps()[stage]
        ]

    def transform(self, keys: KeysCollection = "image", *, stages: Sequence[Stage] = STAGES) -> Compose:
        """The transforms of :meth:`config`. Nothing in them is random."""
        return transform_of(self.config(keys, stages=stages))


@dataclass(frozen=True, kw_only=True)
class Preprocess(BasePreprocess):
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
    _later: ClassVar[tuple[str, ...]] = ("channels", "mean", "std")

    def __post_init__(self) -> None:
        _require(_whole(self.size) and self.size > 0, "size", self.size, "a positive whole number")
        choices = {"channels": (1, 3), "slices": (1, 3), "resize": _SIDES, "interpolation": ("bilinear", "bicubic")}
        for name, allowed in choices.items():
            value = getattr(self, name)
            _require(type(value) in (int, str) and value in allowed, name, value, " or ".join(map(str, allowed)))
        to = self.size if self.resize_to is None else self.resize_to
        if self.resize == "pad":
            _require(_whole(to) and to == self.size, "resize_to", to, f"{self.size}, as nothing is cut")
        _require(_whole(to) and to >= self.size, "resize_to", to, f"a whole number from {self.size} on")
        object.__setattr__(self, "resize_to", to)
        for name in ("mean", "std"):
            numbers = _numbers(name, getattr(self, name))
            _require(len(numbers) in (1, self.channels), name, numbers, f"1 or {self.channels} numbers")
            object.__setattr__(self, name, numbers if len(numbers) == self.channels else numbers * self.channels)
        _require(min(_numbers("std", self.std)) > 0, "std", self.std, "positive")
        if self.window is not None:
            object.__setattr__(self, "window", _window(self.window))

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, size, size). C is `channels`, or 3 of three slices."""
        return (max(self.channels, self.slices), self.size, self.size)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (self.slices, self.size, self.size)

    def _steps(self) -> Steps:
        square = [self.size, self.size]
        resize = {"size": self.resize_to, "side": _SIDES[self.resize], "interpolation": self.interpolation}
        repeat = self.slices // self.channels if self.slices > self.channels else 1
        mean, std = (list(_numbers(name, getattr(self, name))) * repeat for name in ("mean", "std"))
        return {
            "stored": [
                (ReadImaged, {"window": self.window and list(self.window), "slices": self.slices}),
                (ResizeAntialiasedd, resize),
                ("SpatialPadd", {"spatial_size": square})
                if self.resize == "pad"
                else ("CenterSpatialCropd", {"roi_size": square}),
                (ToBytesd, {}),
            ],
            "unit": [("ScaleIntensityRanged", {"a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1})],
            "normal": [
                *([("RepeatChanneld", {"repeats": self.channels})] if self.channels > self.slices else []),
                ("NormalizeIntensityd", {"subtrahend": mean, "divisor": std, "channel_wise": True}),
            ],
        }

    def unit(self, stored: torch.Tensor) -> torch.Tensor:
        return stored / 255

    def matrix(self, spatial: Sequence[int]) -> np.ndarray:
        """Index (row, column) of a pixel of an image of height and width `spatial` → that of the network's grid.

        Returns:
            float64 (3, 3), see :mod:`.geometry`.
        """
        between = target_size(spatial, self.resize_to or self.size, _SIDES[self.resize])
        return centring(between, (self.size, self.size)) @ resizing(spatial, between)

    def row_matrix(self, row: Mapping[str, Any]) -> np.ndarray:
        return self.matrix(_spatial(row))

    def read_mask(self, path: str, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        mask = read_mask(path, slice=row.get("slice") if str(path).endswith((".nii", ".nii.gz")) else None)
        if mask.shape != _spatial(row):
            raise VividError(f"{path}: the mask is {mask.shape}, its image {row['image']} {_spatial(row)} pixels")
        return mask, np.eye(3)


def _spatial(row: Mapping[str, Any]) -> tuple[int, int]:
    if row.get("height") is None or row.get("width") is None:
        raise VividError(
            f"{row['image']}: its height and width are not in its row, and boxes and masks need them; "
            "`vivid prepare` fills these columns"
        )
    return row["height"], row["width"]


@dataclass(frozen=True, kw_only=True)
class VolumePreprocess(BasePreprocess):
    """How CT volumes become network input. Belongs to the weights and is stored with them.

    The network's grid is a box of `size` voxels of `spacing` around the middle of the scan; what lies outside the scan
    is air, what lies outside the box is cut. Axes are those of the file that are closest to `orientation`; oblique
    volumes are not turned. A volume is reduced by filters as wide as the reduction needs.

    Args:
        size: voxels of the result along its axes (depth, height, width).
        spacing: mm between its voxels, in the same order. A scan of n voxels of s mm gets round(n s / spacing) voxels,
            so the distance is exact to half a voxel over the whole scan.
        orientation: where the index of each axis grows to. ``"SPL"``: slices from inferior to superior, rows from
            anterior to posterior, columns from the patient's right to left.
        window: (centre, width) in HU; values outside become 0 or 1.
        mean, std: of the result's values in [0, 1].

    Raises:
        VividError: a value that cannot be meant.
    """

    size: tuple[int, int, int] = (96, 96, 96)
    spacing: tuple[float, float, float] = (4.0, 4.0, 4.0)
    orientation: str = "SPL"
    window: tuple[float, float] = (0.0, 2000.0)
    mean: float = 0.5
    std: float = 0.25

    kind: ClassVar[str] = "volume"
    stored_dtype: ClassVar[np.dtype] = np.dtype(np.int16)
    _later: ClassVar[tuple[str, ...]] = ("window", "mean", "std")

    def __post_init__(self) -> None:
        size = tuple(self.size) if isinstance(self.size, Sequence) else ()
        ok = len(size) == 3 and all(_whole(n) and n > 0 for n in size)
        _require(ok, "size", self.size, "three positive whole numbers (depth, height, width)")
        spacing = _numbers("spacing", self.spacing)
        _require(len(spacing) == 3 and min(spacing) > 0, "spacing", self.spacing, "three positive numbers, in mm")
        axes = sorted(_AXES.get(letter, 3) for letter in str(self.orientation))
        _require(axes == [0, 1, 2], "orientation", self.orientation, 'one letter of each of L/R, A/P, S/I, as "SPL"')
        mean, std = _numbers("mean", self.mean), _numbers("std", self.std)
        _require(len(mean) == 1, "mean", self.mean, "one number")
        _require(len(std) == 1 and std[0] > 0, "std", self.std, "one positive number")
        found = {"size": size, "spacing": spacing, "window": _window(self.window), "mean": mean[0], "std": std[0]}
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with ``"kind"``."""
        return {"kind": self.kind, **super().to_dict()}

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, *self.size)

    @property
    def mirror_axis(self) -> int:
        return next(axis for axis, letter in enumerate(self.orientation) if letter in "LR")

    def _steps(self) -> Steps:
        low, high = self._range
        return {
            "stored": [
                (ReadVolumed, {"spacing": list(self.spacing), "orientation": self.orientation}),
                ("ResizeWithPadOrCropd", {"spatial_size": list(self.size), "mode": "constant", "value": AIR}),
                (ToHounsfieldd, {}),
            ],
            "unit": [("ScaleIntensityRanged", {"a_min": low, "a_max": high, "b_min": 0, "b_max": 1, "clip": True})],
            "normal": [
                ("NormalizeIntensityd", {"subtrahend": [self.mean], "divisor": [self.std], "channel_wise": True})
            ],
        }

    @property
    def _range(self) -> tuple[float, float]:
        centre, width = self.window
        return centre - width / 2, centre + width / 2

    def unit(self, stored: torch.Tensor) -> torch.Tensor:
        low, high = self._range
        return ((stored - low) / (high - low)).clamp_(0, 1)

    def matrix(self, spatial: Sequence[int], affine: np.ndarray) -> np.ndarray:
        """Index of a voxel of the volume as it is stored → that of the network's grid.

        Args:
            spatial: shape (X, Y, Z) of the volume.
            affine: (4, 4), index → RAS, mm.

        Returns:
            float64 (4, 4), see :mod:`.geometry`.
        """
        place = turned(spatial, affine, self.orientation)
        between = spaced_size(place, self.spacing)
        return centring(between, self.size) @ resizing(place.shape, between) @ place.matrix

    def row_matrix(self, row: Mapping[str, Any]) -> np.ndarray:
        return self.matrix(*volume_geometry(str(row["image"])))

    def read_mask(self, path: str, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        mask, affine = read_labels(path)
        return mask, np.linalg.inv(volume_geometry(str(row["image"]))[1]) @ affine


def preprocess_from_dict(values: Mapping[str, Any]) -> BasePreprocess:
    """The preprocessing that ``to_dict`` made `values` of; where they name no kind, it is of images.

    Raises:
        VividError: an unknown kind; as the kind's own ``from_dict``.
    """
    kind = values.get("kind", "image")
    if kind not in KINDS:
        raise VividError(f"preprocess: kind must be {' or '.join(KINDS)}, not {kind!r}")
    return KINDS[kind].from_dict({name: value for name, value in values.items() if name != "kind"})


KINDS: dict[str, type[BasePreprocess]] = {kind.kind: kind for kind in (Preprocess, VolumePreprocess)}
"""Kinds of preprocessing, by the word that is stored with the weights."""


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise VividError(f"preprocess: {name} must be {expected}, not {cut(repr(value), 60)}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, Sequence) else [value]
    ok = len(values) > 0 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    _require(ok and all(abs(v) < 1e30 for v in values), name, value, "numbers")
    return tuple(float(v) for v in values)


def _window(value: Any) -> tuple[float, ...]:
    window = _numbers("window", value)
    _require(len(window) == 2 and window[1] > 0, "window", value, "(centre, width) with width > 0")
    return window
