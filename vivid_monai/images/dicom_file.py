"""DICOM files: opened within bounds, their attributes as plain values, their pixels as they are stored."""

import math
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from vivid_monai.images.codestream import jpeg2000_stream, jpeg_stream, require_whole
from vivid_monai.images.raster import MAX_PIXELS

MAX_INFLATED = 2**27
"""Bytes that a deflated file may inflate to (a large mammogram takes half of them)."""

_JPEG = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes)
_COLOURS = (
    "unstated",
    "MONOCHROME1",
    "MONOCHROME2",
    "RGB",
    "PALETTE COLOR",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_PARTIAL_420",
)
"""Words that a message may hold: a tag may say anything, a patient's name too."""
_OF_THE_FRAME = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "FrameDisplayShutterSequence",
    "PixelMeasuresSequence",
)


def dcmread(path: str | Path, **options: Any) -> pydicom.FileDataset:
    """pydicom's ``dcmread`` of a file on disk, with `options`, that does not let a small file fill the memory.

    Raises:
        ValueError: a deflated file that inflates to more than `MAX_INFLATED` bytes. Whatever pydicom raises.
    """
    with Path(path).open("rb") as file:
        if file.read(132)[128:] == b"DICM":
            meta = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                _bound(file)
    return pydicom.dcmread(path, **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Without pydicom's warnings, which quote the values of tags."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
        yield


def without_values(error: BaseException) -> str:
    """What an error says; of one of pydicom's without what stands in quotes, which may be the value of a tag."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    text = str(error) or type(error).__name__
    return re.sub(r"'[^']*'|\"[^\"]*\"", "…", text) if frames and frames[-1].startswith("pydicom") else text


def _bound(file: BinaryIO) -> None:
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    data = file.read()
    while data and not inflater.eof:
        size += len(inflater.decompress(data, 2**20))
        data = inflater.unconsumed_tail
        if size > MAX_INFLATED:
            raise ValueError(f"inflates to more than the {MAX_INFLATED:,} bytes allowed")


def value_of(ds: pydicom.Dataset, name: str) -> Any:
    """The value of an attribute; of one that is empty None, as if it were not there."""
    value = ds.get(name)
    return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value


def numbers_of(ds: pydicom.Dataset, name: str) -> list[float | None]:
    """The numbers of an attribute, none where it is empty; None stands for an empty one among others.

    Raises:
        ValueError: something else than finite numbers.
    """
    try:
        value = value_of(ds, name)
        values = value if isinstance(value, MultiValue | list) else [] if value is None else [value]
        numbers = [None if one is None or one == "" else float(one) for one in values]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"its {name} is not a number") from None
    if not all(one is None or math.isfinite(one) for one in numbers):
        raise ValueError(f"its {name} is not finite")
    return numbers


def number_of(ds: pydicom.Dataset, name: str) -> float | None:
    """The first number of an attribute, as of :func:`numbers_of`."""
    return next(iter(numbers_of(ds, name)), None)


def read_stored(path: Path) -> tuple[pydicom.Dataset, np.ndarray]:
    """Read a grey image of one frame.

    Returns:
        data set, in which what functional groups say of the frame stands as in an image without them; stored values,
        integers (H, W), of BitsStored bits whatever HighBit is. Compressed ones are decoded by pylibjpeg (JPEG,
        JPEG-LS, JPEG 2000), whatever else is installed, so that every machine sees the same values.

    Raises:
        ValueError: no pixel data, several frames, colour, a class of object that is no image, too many pixels, damaged
            pixel data (decoders may raise other exceptions as well).
    """
    ds = dcmread(path)
    _check(ds)
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for name in _OF_THE_FRAME:
            for item in (value_of(ds, groups) or [{}])[0].get(name) or []:
                ds.update({element.tag: element for element in item})
    return ds, _decode(ds)


def _check(ds: pydicom.Dataset) -> None:
    sop_class = UID(ds.get("SOPClassUID") or "")
    if not sop_class.is_private and sop_class.name != sop_class and "Image Storage" not in sop_class.name:
        raise ValueError(f"holds no image but {sop_class.name}")
    if "PixelData" not in ds:
        raise ValueError("has no pixel data (not an image, or a truncated file)")
    frames = number_of(ds, "NumberOfFrames") or 1
    if frames != 1:
        raise ValueError(f"holds {frames:g} frames; export the one that is meant as a single image")
    kind = value_of(ds, "PhotometricInterpretation") or "unstated"
    if (number_of(ds, "SamplesPerPixel") or 1) != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        told = kind if kind in _COLOURS else "of another kind"
        raise ValueError(f"is not a grey image (photometric interpretation {told})")
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        numbers = numbers_of(ds, name)
        if not numbers:
            raise ValueError(f"has no {name}")
        if len(numbers) > 1 or not isinstance(ds[name].value, int):
            raise ValueError(f"its {name} is not one whole number")
    if not 0 < ds.BitsStored <= ds.BitsAllocated:
        raise ValueError(f"its BitsStored {ds.BitsStored} cannot be those of {ds.BitsAllocated} bits")
    if ds.Rows * ds.Columns > MAX_PIXELS:
        raise ValueError(f"{ds.Columns} x {ds.Rows} pixels are more than the {MAX_PIXELS:,} allowed")


def _decode(ds: pydicom.Dataset) -> np.ndarray:
    syntax, stream = ds.file_meta.TransferSyntaxUID, None
    plugin = "pylibjpeg" if syntax.is_compressed and syntax != RLELossless else ""
    if plugin and ds.BitsAllocated not in (8, 16):
        raise ValueError(f"its BitsAllocated {ds.BitsAllocated} cannot be that of a JPEG image")
    ds.SamplesPerPixel, bits = 1, ds.BitsStored
    frame = get_frame(ds.PixelData, 0, number_of_frames=1) if plugin else b""
    if syntax in _JPEG or syntax in JPEG2000TransferSyntaxes:
        stream = jpeg_stream(frame) if syntax in _JPEG else jpeg2000_stream(frame)
        if (stream.height, stream.width, stream.channels) != (ds.Rows, ds.Columns, 1):
            raise ValueError(
                f"its header says {ds.Columns} x {ds.Rows} grey pixels, its compressed data "
                f"{stream.width} x {stream.height} of {stream.channels} channels"
            )

    high = int((numbers_of(ds, "HighBit") or [bits - 1])[0] or 0)
    aligned = high == bits - 1 or (stream is not None and stream.bits <= high)  # decoders give the lower bits
    if high >= ds.BitsAllocated or (not aligned and high < bits):
        raise ValueError(f"its HighBit {high} cannot be that of {bits} of {ds.BitsAllocated} bits")
    if not aligned:
        ds.BitsStored = ds.BitsAllocated

    def decode(data: bytes) -> np.ndarray:
        ds.PixelData = encapsulate([data])
        return pixel_array(ds, decoding_plugin=plugin)

    stored = pixel_array(ds, decoding_plugin=plugin)
    if stream is not None and stream.end is not None:
        require_whole(frame, stream, stored, decode)
    ds.BitsStored = bits
    if aligned:
        return stored
    allocated = stored.itemsize * 8
    return np.right_shift(np.left_shift(stored, allocated - 1 - high), allocated - bits)
