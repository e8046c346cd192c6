"""One reader for every image file: raster images, DICOM and NIfTI slices, told apart by content, not by name."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import numpy as np

from vivid_monai.errors import VividError
from vivid_monai.images.dicom import read_dicom
from vivid_monai.images.dicom_file import quiet, without_values
from vivid_monai.images.nifti import read_nifti, read_nifti_labels
from vivid_monai.images.raster import read_bmp, read_jpeg, read_png, read_png_labels, read_tiff

READER = 2
"""Raised where files come out as other pixels than before: caches of pixels and of features are made anew."""
PACKAGES = (
    *("vivid-monai", "numpy", "torch", "monai", "pillow", "pydicom", "nibabel"),
    *("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"),
)
"""What stands between an image file and its pixels; another version of one may give others."""

_HEAD = 352  # bytes: up to the end of a NIfTI-1 header and its magic number
_BMP_HEADERS = [size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)]


class ImageError(VividError):
    """One image file cannot be used; the message names the file, the cause and, where there is one, the way out."""


_FORMATS: dict[str, tuple[Callable[..., np.ndarray], set[str]]] = {
    "PNG": (read_png, set()),
    "JPEG": (read_jpeg, set()),
    "TIFF": (read_tiff, set()),
    "BMP": (read_bmp, set()),
    "DICOM": (read_dicom, {"window"}),
    "NIfTI": (read_nifti, {"slice", "slices", "window"}),
}
"""Reader of each format, and which of slice, slices and window it knows."""


def _format_of(head: bytes) -> str | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[128:132] == b"DICM":
        return "DICOM"
    if head.startswith(b"\x1f\x8b") or head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return "NIfTI"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # after DICOM, whose preamble may be a TIFF header
        return "TIFF"
    if head.startswith(b"BM") and head[14:18] in _BMP_HEADERS:
        return "BMP"
    return None


def read_image(
    path: str | os.PathLike[str],
    *,
    slice: int | None = None,
    slices: int = 1,
    window: tuple[float, float] | None = None,
) -> np.ndarray:
    """Read one two-dimensional grey image, or a slice of a volume with its neighbours.

    Args:
        path: a PNG, JPEG, TIFF, BMP, DICOM (Part 10) or NIfTI file; only NIfTI needs its extension (.nii, .nii.gz).
        slice: NIfTI only: index along the inferior→superior axis, 0 = most inferior.
        slices: 1; or, NIfTI only, 3 for the slice below, the slice itself and the one above.
        window: DICOM and NIfTI only: (centre, width) in the file's real-world unit, HU for CT; replaces the DICOM
            file's own window. Values outside become 0 or 1.

    Returns:
        float32 array (slices, H, W) in [0, 1], bright = dense, C-contiguous. The reader of each format tells how its
        values are scaled.

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, of another kind, or not one grey image.
        VividError: ``window`` is not a pair of a number and a positive number.
    """
    if window is not None and not (len(window) == 2 and np.isfinite(window).all() and window[1] > 0):
        raise VividError(f"window must be (centre, width) with width > 0, not {window!r}")
    path = Path(path)
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise ImageError(f"{path}: is a pipe, a socket or a device, not a file")  # opening it may wait for ever
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror or error})") from error
    if not head:
        raise ImageError(f"{path}: the file is empty (0 bytes)")
    if (form := _format_of(head)) is None:
        raise ImageError(f"{path}: neither PNG, JPEG, TIFF, BMP, DICOM (Part 10) nor NIfTI by its first bytes")

    read, known = _FORMATS[form]
    asked = {"slice": slice, "slices": None if slices == 1 else slices, "window": window}
    options = {name: value for name, value in asked.items() if value is not None}
    if unknown := options.keys() - known:
        raise ImageError(f"{path}: {' and '.join(sorted(unknown))} cannot be applied to a {form} file")
    with readable(path, form):
        pixels = read(path, **options)
    if pixels.ndim != (2 if slices == 1 else 3) or pixels.size == 0:
        raise ImageError(f"{path}: not a two-dimensional image with pixels (shape {pixels.shape})")
    if not np.isfinite(pixels).all():
        raise ImageError(f"{path}: holds values that are not finite (NaN or infinity)")
    return np.ascontiguousarray(pixels if slices > 1 else pixels[None], dtype=np.float32)


def read_mask(path: str | os.PathLike[str], *, slice: int | None = None) -> np.ndarray:
    """Read the mask of a two-dimensional image: the values as they are stored.

    Args:
        path: a PNG of at most 8 bits, or a NIfTI file, whose slices are turned as :func:`read_image` turns them.
        slice: NIfTI only: as of :func:`read_image`.

    Returns:
        uint8 (H, W).

    Raises:
        ImageError: the file cannot be read, or holds values other than whole numbers from 0 to 255.
    """
    path = Path(path)
    with readable(path, "mask"):
        with path.open("rb") as file:
            form = _format_of(file.read(_HEAD))
        if form not in ("PNG", "NIfTI"):
            raise ValueError("neither PNG nor NIfTI by its first bytes")
        return whole_labels(read_png_labels(path) if form == "PNG" else read_nifti_labels(path, slice=slice))


def whole_labels(values: np.ndarray) -> np.ndarray:
    """The values of a mask as uint8; a ValueError where they are others than whole numbers from 0 to 255."""
    labels = values.astype(np.uint8)
    if not np.array_equal(labels, values):
        raise ValueError("holds values other than whole numbers from 0 to 255")
    return labels


@contextmanager
def readable(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Errors of the block as an :class:`ImageError` of the file; decoders raise whatever they like on damaged ones."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise ImageError(f"{path}: unreadable {what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What an error says, in one short line without the value of a tag; some say it in several, some nothing."""
    return shorten(without_values(error), 240, placeholder=" …") or type(error).__name__


def image_error_behind(error: BaseException) -> ImageError | None:
    """The ImageError that `error` is or was raised from, as MONAI's ``Compose`` wraps what its transforms raise."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ImageError):
        cause = cause.__cause__
    return cause
