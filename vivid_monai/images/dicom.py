"""Single-frame grey DICOM images, from stored values to what a viewer would show."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing, pixel_array
from pydicom.uid import UID, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes, RLELossless

from vivid_monai.images.raster import MAX_PIXELS


def read_dicom(path: Path, *, window: tuple[float, float] | None = None) -> np.ndarray:
    """Read a DICOM image as float32 (H, W) in [0, 1], bright = dense.

    The grey-scale pipeline of the standard (PS3.4 N.2): modality LUT or rescale, then the first VOI LUT, else the first
    window (linear, linear exact or sigmoid), then inversion if MONOCHROME1. ``window`` = (centre, width) in output
    units of the modality step (HU for CT), linear exact, replaces the file's own. Where there is neither, the range
    that is scaled is, for up to 8 stored bits, everything the bits can hold (0–255: the pixels of an 8-bit PNG), and
    for more bits the smallest to the largest value of the image. Padding pixels (PixelPaddingValue) are 0.

    Compressed pixel data is decoded by pylibjpeg (JPEG, JPEG-LS, JPEG 2000), whatever else is installed, so that
    every machine sees the same values. Patient orientation is not used: rows and columns stay as stored.

    Raises:
        ValueError: no pixel data, several frames, colour, a class of object that is no image, a constant image whose
            range cannot be told, or damaged pixel data (decoders may raise other exceptions as well).
    """
    ds, values, padding = _read(path)
    if padding.all():
        raise ValueError("every pixel is padding")

    if window is not None:
        centre, width = window
        shown = (values - (centre - width / 2)) / width
    elif _has_voi_lut(ds):
        shown = _voi_lut(values, ds)
    elif ds.get("WindowCenter") is not None and ds.get("WindowWidth") is not None:
        low, high = apply_windowing(np.array([-np.inf, np.inf]), ds)  # what the window makes of black and white
        shown = (apply_windowing(values, ds) - low) / (high - low)
    else:
        low, high = _full_range(ds, values[~padding])
        shown = (values - low) / (high - low)
    shown = np.clip(shown, 0, 1).astype(np.float32)  # before inverting, so that MONOCHROME1 is the exact inverse
    if ds.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    shown[padding] = 0
    return shown


def read_values(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a DICOM image in output units of the modality step, HU for CT.

    Returns:
        values float (H, W), and where they are padding (PixelPaddingValue), bool (H, W).

    Raises:
        ValueError: as `read_dicom`.
    """
    _, values, padding = _read(path)
    return values.astype(np.float64), padding


def _read(path: Path) -> tuple[pydicom.Dataset, np.ndarray, np.ndarray]:
    ds = pydicom.dcmread(path)
    _check(ds)
    stored = _decode(ds)
    return ds, apply_modality_lut(stored, ds), _padding(ds, stored)


def _check(ds: pydicom.Dataset) -> None:
    sop_class = UID(ds.get("SOPClassUID") or "")
    if not sop_class.is_private and sop_class.name != sop_class and "Image Storage" not in sop_class.name:
        raise ValueError(f"holds no image but {sop_class.name}")
    if "PixelData" not in ds:
        raise ValueError("has no pixel data (not an image, or a truncated file)")
    frames = int(ds.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ValueError(f"holds {frames} frames; export the one that is meant as a single image")
    kind = ds.get("PhotometricInterpretation", "unstated")
    if ds.get("SamplesPerPixel", 1) != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"is not a grey image (photometric interpretation {kind})")
    if ds.Rows * ds.Columns > MAX_PIXELS:
        raise ValueError(f"{ds.Columns} x {ds.Rows} pixels are more than the {MAX_PIXELS:,} allowed")


def _decode(ds: pydicom.Dataset) -> np.ndarray:
    syntax = ds.file_meta.TransferSyntaxUID
    has_end_mark = syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes)
    # The decoder fills what is missing of a truncated stream with grey and says nothing.
    if has_end_mark and b"\xff\xd9" not in get_frame(ds.PixelData, 0, number_of_frames=1)[-16:]:
        raise ValueError("its JPEG data has no end; it is truncated")
    return pixel_array(ds, decoding_plugin="pylibjpeg" if syntax.is_compressed and syntax != RLELossless else "")


def _padding(ds: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    value: Any = ds.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = ds.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _has_voi_lut(ds: pydicom.Dataset) -> bool:
    items = ds.get("VOILUTSequence") or [pydicom.Dataset()]
    return "LUTDescriptor" in items[0] and "LUTData" in items[0]


def _voi_lut(values: np.ndarray, ds: pydicom.Dataset) -> np.ndarray:
    item = ds.VOILUTSequence[0]
    entries, first, depth = item.LUTDescriptor
    # A table index is whole, and pydicom keeps it in the table's own type: 8-bit tables of over 256 entries would wrap.
    item.LUTDescriptor = [entries, first, 16]
    whole = np.clip(np.rint(values), first, first + (entries or 2**16) - 1).astype(np.int64)
    return apply_voi_lut(whole, ds) / (2**depth - 1)


def _full_range(ds: pydicom.Dataset, values: np.ndarray) -> tuple[float, float]:
    if ds.BitsStored <= 8:
        signed, bits = bool(ds.PixelRepresentation), int(ds.BitsStored)
        ends = np.arange(-(2 ** (bits - 1)) if signed else 0, 2 ** (bits - 1) if signed else 2**bits)
        values = apply_modality_lut(ends, ds)
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise ValueError(f"every pixel is {low:g}, and neither window nor VOI LUT says how bright that is")
    return low, high
