"""Single-frame grey DICOM images, from stored values to what a viewer would show."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from PIL import Image, ImageDraw
from pydicom.pixels import apply_windowing

from .dicom_file import number_of, numbers_of, read_stored, value_of
from .raster import MAX_PIXELS, bands

Change = Callable[[np.ndarray], np.ndarray]
"""Of values, each on its own: an image can be changed part by part, and of a large one never is all in float64."""

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
_SQUARE = 0.01
"""Pixels whose sides differ by less count as square."""


def read_dicom(path: Path, *, window: tuple[float, float] | None = None) -> np.ndarray:
    """Read a DICOM image as float32 (H, W) in [0, 1], bright = dense.

    The grey-scale pipeline of the standard (PS3.4 N.2): modality LUT or rescale, then the first VOI LUT, else the first
    window (linear, linear exact or sigmoid), then inversion by PresentationLUTShape, else of MONOCHROME1. ``window`` =
    (centre, width) in output units of the modality step (HU for CT), linear exact, replaces the file's own. Where there
    is neither, the range that is scaled is, for up to 8 stored bits, everything the bits can hold (0–255: the pixels of
    an 8-bit PNG), and for more bits the smallest to the largest value of the image. Padding pixels (PixelPaddingValue)
    are 0, pixels outside of the display shutter have its value. An attribute that is there and empty counts as absent.
    A table that uses less than half of the range that its descriptor says, or more than that, is scaled by its largest
    entry.

    Where the sides of pixels differ by over 1 %, rows or columns are interpolated so that pixels are square. Patient
    orientation is not used: rows and columns stay as stored.

    Raises:
        ValueError: as :func:`.dicom_file.read_stored`; also a constant image whose range cannot be told, one of which
            padding and shutter leave nothing, attributes that cannot be meant.
    """
    ds, stored = read_stored(path)
    outside, cover = _shutter(ds, stored.shape)
    padding = _padding(ds, stored)
    hidden = padding | outside
    if hidden.all():
        raise ValueError("every pixel is padding or outside of the display shutter")

    units = _modality(ds)
    shade = _window(*window) if window is not None else _voi(ds, units) or _full_range(ds, units, stored, hidden)
    image = np.empty(stored.shape, np.float32)
    for rows in bands(stored.shape):
        image[rows] = np.clip(shade(units(stored[rows])), 0, 1)
    if _is_inverted(ds):
        np.subtract(np.float32(1), image, out=image)  # after clipping: the exact inverse
    image[padding] = 0
    image[outside] = cover
    return _square(ds, image)


def read_values(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a DICOM image in output units of the modality step, HU for CT.

    Returns:
        values float (H, W), and where they are padding (PixelPaddingValue), bool (H, W).

    Raises:
        ValueError: as :func:`.dicom_file.read_stored`.
    """
    ds, stored = read_stored(path)
    return _modality(ds)(stored).astype(np.float64), _padding(ds, stored)


def _is_inverted(ds: pydicom.Dataset) -> bool:
    """Whether small values are bright: by the presentation LUT shape, which viewers put above the other attribute."""
    shape = value_of(ds, "PresentationLUTShape")
    return shape == "INVERSE" or (shape != "IDENTITY" and ds.PhotometricInterpretation == "MONOCHROME1")


class _Table(NamedTuple):
    """A look-up table: value `first` and all below have its first entry, and `top` is the largest that is meant."""

    first: int
    entries: np.ndarray
    top: int

    def look_up(self, values: np.ndarray) -> np.ndarray:
        places = np.rint(np.asarray(values, np.float64)) - self.first
        return self.entries[np.clip(places, 0, len(self.entries) - 1).astype(np.int64)]


def _table(ds: pydicom.Dataset, sequence: str, *, signed: bool) -> _Table | None:
    """The first table of a sequence that is not empty; `signed`: whether the values that it maps may be negative."""
    for item in value_of(ds, sequence) or []:
        descriptor = value_of(item, "LUTDescriptor")
        data = None if descriptor is None else value_of(item, "LUTData")  # pydicom needs the one to read the other
        if data is None:
            continue
        descriptor = _words(ds, descriptor)
        if len(descriptor) != 3:
            raise ValueError(f"the LUTDescriptor of its {sequence} has {len(descriptor)} values, not 3")
        n, first, depth = (int(one) for one in descriptor)
        n = n % 2**16 or 2**16
        if signed and first >= 2**15:  # implicit VR does not say that the descriptor has a sign
            first -= 2**16
        entries = _words(ds, data) % 2**16
        if depth <= 8 and len(entries) < n <= 2 * len(entries):  # two to a word
            entries = entries.astype("<u2").view(np.uint8).astype(np.int64)
        entries, top = entries[:n], 2**depth - 1 if 0 < depth <= 16 else 0
        largest = max(1, int(entries.max()))
        setattr(ds, sequence, [item])  # for pydicom, which looks at the first, be it empty,
        item.LUTDescriptor = [n, first, depth if top else 16]  # and needs a depth
        return _Table(first, entries, top if top // 2 < largest <= top else largest)
    return None


def _words(ds: pydicom.Dataset, value: bytes | int | list[int]) -> np.ndarray:
    """Words of 16 bits, int64: from VR OW as they are in the file, from US and SS as numbers."""
    if isinstance(value, bytes):
        order = "<" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">"
        return np.frombuffer(value[: len(value) // 2 * 2], f"{order}u2").astype(np.int64)
    return np.atleast_1d(np.asarray(value, np.int64))


def _modality(ds: pydicom.Dataset) -> Change:
    if table := _table(ds, "ModalityLUTSequence", signed=bool(ds.PixelRepresentation)):
        return table.look_up
    ds.pop("ModalityLUTSequence", None)
    slope, intercept = number_of(ds, "RescaleSlope"), number_of(ds, "RescaleIntercept")
    if slope is None or intercept is None:
        return lambda stored: stored
    if slope == 0:
        raise ValueError("its RescaleSlope is 0")
    return lambda stored: stored.astype(np.float64) * slope + intercept


def _lowest(ds: pydicom.Dataset) -> int:
    """The smallest value that the stored bits can hold."""
    return -(2 ** (int(ds.BitsStored) - 1)) if ds.PixelRepresentation else 0


def _voi(ds: pydicom.Dataset, units: Change) -> Change | None:
    """The first VOI LUT, else the first window, to [0, 1] where it is not clipped; None where there is neither."""
    low = _lowest(ds)
    signed = bool(units(np.array([low, low + 2 ** int(ds.BitsStored) - 1])).min() < 0)
    if table := _table(ds, "VOILUTSequence", signed=signed):
        return lambda values: table.look_up(values) / table.top

    windows = zip(numbers_of(ds, "WindowCenter"), numbers_of(ds, "WindowWidth"), strict=False)
    index = next((place for place, window in enumerate(windows) if None not in window), None)
    if index is None:
        return None
    ds.VOILUTFunction = str(value_of(ds, "VOILUTFunction") or "LINEAR").upper()
    # What the window makes of black and white: pydicom scales to the range of the modality step.
    black, white = apply_windowing(np.array([-np.inf, np.inf]), ds, index)
    return lambda values: (apply_windowing(values, ds, index) - black) / (white - black)


def _window(centre: float, width: float) -> Change:
    return lambda values: (values - (centre - width / 2)) / width


def _full_range(ds: pydicom.Dataset, units: Change, stored: np.ndarray, hidden: np.ndarray) -> Change:
    if ds.BitsStored <= 8:
        parts = [units(np.arange(2 ** int(ds.BitsStored)) + _lowest(ds))]
    else:
        shown = ((stored[rows][~hidden[rows]]) for rows in bands(stored.shape))
        parts = [np.array([part.min(), part.max()]) for part in (units(one) for one in shown if one.size)]
    low, high = float(min(part.min() for part in parts)), float(max(part.max() for part in parts))
    if low == high:
        raise ValueError(f"every pixel is {low:g}, and neither window nor VOI LUT says how bright that is")
    return lambda values: (values - low) / (high - low)


def _padding(ds: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Where pixels are padding; bool (H, W)."""
    value, limit = (number_of(ds, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return np.zeros(stored.shape, bool)
    low, high = sorted(_of_sign(int(one), stored.dtype) for one in (value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _of_sign(value: int, dtype: np.dtype) -> int:
    """A value that was written as if pixels had no sign, or had one, as they have it."""
    size = 2 ** (8 * dtype.itemsize)
    if dtype.kind == "i" and size // 2 <= value < size:
        return value - size
    return value + size if dtype.kind == "u" and -size // 2 <= value < 0 else value


def _shutter(ds: pydicom.Dataset, shape: tuple[int, ...]) -> tuple[np.ndarray, np.float32]:
    """What the display shutter covers, bool (H, W), and with which grey in [0, 1] (PS3.3 C.7.6.11).

    Its rows and columns count from 1. Of several shapes, what is inside of all is shown.
    """
    outside = np.zeros(shape, bool)
    shapes = value_of(ds, "ShutterShape") or ""
    shapes = [shapes] if isinstance(shapes, str) else list(shapes)
    rows, columns = np.arange(1, shape[0] + 1), np.arange(1, shape[1] + 1)
    if "RECTANGULAR" in shapes:
        names = ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
        upper, lower, left, right = (number_of(ds, f"Shutter{name}Edge") for name in names)
        outside |= ~(_between(upper, rows, lower)[:, None] & _between(left, columns, right))
    if "CIRCULAR" in shapes:
        row, column = _pairs(ds, "CenterOfCircularShutter", least=1)[0]
        radius = number_of(ds, "RadiusOfCircularShutter")
        if radius is None:
            raise ValueError("its circular shutter has no radius")
        for part in bands(shape):  # the radius is one along a row
            across = ((rows[part] - row) * _aspect(ds))[:, None] ** 2 + (columns - column) ** 2
            outside[part] |= across > radius**2
    if "POLYGONAL" in shapes:
        inside = Image.new("1", (shape[1], shape[0]))
        vertices = _pairs(ds, "VerticesOfThePolygonalShutter", least=3)
        ImageDraw.Draw(inside).polygon([(column - 1, row - 1) for row, column in vertices], fill=1, outline=1)
        outside |= ~np.asarray(inside)
    value = number_of(ds, "ShutterPresentationValue") or 0
    return outside, np.float32(min(max(value, 0), 65535) / 65535)


def _between(low: float | None, places: np.ndarray, high: float | None) -> np.ndarray:
    return (places >= (-np.inf if low is None else low)) & (places <= (np.inf if high is None else high))


def _pairs(ds: pydicom.Dataset, name: str, *, least: int) -> list[tuple[float, float]]:
    """(row, column) of the points of an attribute."""
    numbers = [one for one in numbers_of(ds, name) if one is not None]
    if len(numbers) < 2 * least or len(numbers) % 2:
        raise ValueError(f"its {name} has {len(numbers)} numbers, not {least} or more of row and column each")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _aspect(ds: pydicom.Dataset) -> float:
    """Height of a pixel over its width."""
    for name in _SPACINGS:
        sides = numbers_of(ds, name)
        if len(sides) == 2 and all(one is not None and one > 0 for one in sides):
            return float(sides[0] or 1) / float(sides[1] or 1)
    return 1.0


def _square(ds: pydicom.Dataset, image: np.ndarray) -> np.ndarray:
    aspect = _aspect(ds)
    if abs(aspect - 1) < _SQUARE:
        return image
    height, width = image.shape
    size = (width, round(height * aspect)) if aspect > 1 else (round(width / aspect), height)
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{size[0]} x {size[1]} square pixels are more than the {MAX_PIXELS:,} allowed")
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
