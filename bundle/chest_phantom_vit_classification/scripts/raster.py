"""PNG, JPEG, TIFF and BMP, read by Pillow with the checks it leaves out."""

import io
import logging
from collections.abc import Iterator
from mmap import mmap
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from .codestream import jpeg_stream, require_whole

logger = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000
"""Images of more pixels are refused as decompression bombs (a large mammogram has 30 million)."""

NARROW: bytearray | mmap = mmap(-1, 16)
"""At a number of bits: 1 if 16-bit images that hold so many were read, which is told once.

Forked processes share it: workers of a loader, which are others in every epoch.
"""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, the weights of JPEG's own Y channel


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of an image, four million pixels at a time: of a large one, never is all in a wider type."""
    step = max(1, 2**22 // max(1, shape[1]))
    return (slice(first, first + step) for first in range(0, shape[0], step))


def read_png(path: Path) -> np.ndarray:
    """Read a PNG of 1, 2, 4, 8 or 16 bits as float32 (H, W) in [0, 1].

    The full range of the bit depth is scaled (255, 65,535, …), never the range of the image. But 16-bit files often
    hold the 10, 12 or 14 bits of a detector as they are. So what is scaled is the range of 8, 10, 12, 14 or 16 bits,
    the least that the largest value fits into; or of the bits that an sBIT chunk says, where they are enough. It is
    logged once.

    Palette and colour become grey: one channel where all three are equal, luminance (ITU-R BT.601) otherwise. An alpha
    channel must be opaque. 16-bit colour and 16-bit alpha are refused, because the decoder would halve their depth.
    Checksums are verified: the decoder alone lets about one damaged file in ten pass. An EXIF orientation is applied.

    Raises:
        ValueError, OSError, SyntaxError: for a damaged file or one of the kinds above.
    """
    data = path.read_bytes()
    if len(data) > 25 and data[24] == 16 and data[25] != 0:  # IHDR: bit depth, colour type
        raise ValueError("16-bit colour or alpha is not supported; save it as 16-bit grey")
    with _open(io.BytesIO(data), "PNG") as image:
        image.verify()
    with _open(io.BytesIO(data), "PNG") as image:
        return _grey(image, path, _significant_bits(data))


def _significant_bits(data: bytes) -> int | None:
    """What the sBIT chunk of a grey PNG says; it stands before the first IDAT."""
    at = data.find(b"\0\0\0\1sBIT", 0, data.find(b"IDAT"))
    return data[at + 8] if at > 0 and 0 < data[at + 8] <= 16 else None


def read_jpeg(path: Path) -> np.ndarray:
    """Read an 8-bit JPEG, grey or colour, as float32 (H, W) in [0, 1], as :func:`read_png` does; CMYK is refused.

    The EXIF orientation is applied: H and W are those of the image as a viewer shows it.

    Raises:
        ValueError, OSError, SyntaxError: as :func:`read_png`; also data that end before the image does.
    """
    data = path.read_bytes()
    with _open(io.BytesIO(data), "JPEG") as image:
        image.load()
        try:
            stream = jpeg_stream(data)
        except ValueError:  # without an end mark Pillow knows whether all is there
            return _grey(image, path)
        require_whole(data, stream, np.asarray(image), lambda some: np.asarray(_open(io.BytesIO(some), "JPEG")))
        return _grey(image, path)


def read_tiff(path: Path) -> np.ndarray:
    """Read a TIFF of one page, grey up to 16 bits without sign or 8-bit colour, as :func:`read_png` does."""
    with _open(io.BytesIO(path.read_bytes()), "TIFF") as image:  # from a path Pillow 13 garbles what is to be turned
        bits, inverted = image.tag_v2.get(258, (1,)), image.tag_v2.get(262) == 0  # type: ignore[attr-defined]
        if max(bits) > 8 and (len(bits) > 1 or not image.mode.startswith("I;16")):
            raise ValueError("more than 8 bits are not supported but as 16-bit grey without sign; save it as such")
        grey = _grey(image, path, bits[0] if 8 < bits[0] < 16 else None)
        return 1 - grey if inverted and bits[0] > 8 else grey  # up to 8 bits Pillow inverts "white is zero" itself


def read_bmp(path: Path) -> np.ndarray:
    """Read a BMP, grey, palette or 8-bit colour, as :func:`read_png` does."""
    with _open(path, "BMP") as image:
        return _grey(image, path)


def read_png_labels(path: Path) -> np.ndarray:
    """The stored values of a grey or palette PNG of at most 8 bits, uint8 (H, W): of a mask, whose values are names."""
    with _open(path, "PNG") as image:
        image.load()
        if image.mode not in ("1", "L", "P"):
            raise ValueError(f"colour mode {image.mode} is not that of a mask; save it as 8-bit grey")
        return np.asarray(image).astype(np.uint8)


def _open(source: io.BytesIO | Path, form: str) -> Image.Image:
    """An image whose pixels are not decoded yet, one and not too large."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, which fills truncated images up; turn it off")
    try:
        image = Image.open(source, formats=[form])
    except UnidentifiedImageError as error:  # its own words hold the address of the buffer, another one each time
        raise ValueError("the header is damaged or cut off") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS:,} allowed")
    if (frames := getattr(image, "n_frames", 1)) != 1:
        raise ValueError(f"holds {frames} frames; save the one that is meant as a single image")
    return image


def _grey(image: Image.Image, path: Path, significant: int | None = None) -> np.ndarray:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if "transparency" in image.info:
        if image.mode.startswith("I"):
            raise ValueError("16-bit grey with a transparent value is not supported; save it without")
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")

    if image.mode in ("1", "L"):
        return _scaled(image, 1 if image.mode == "1" else 255)
    if image.mode in ("I;16", "I;16B", "I"):  # Pillow's names for 16-bit grey
        values = np.asarray(image)
        return _scaled(values, 2 ** _bits(int(values.max()), significant, path) - 1)
    if image.mode not in ("LA", "RGB", "RGBA"):
        raise ValueError(f"colour mode {image.mode} is not supported; save it as grey")
    pixels = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        if (pixels[..., -1] != 255).any():
            raise ValueError("has transparent pixels, whose grey value is undefined; save it without alpha")
        pixels = pixels[..., :-1]
    first = pixels[..., 0]
    if all((pixels[rows] == first[rows, :, None]).all() for rows in bands(first.shape)):
        return _scaled(first, 255)
    grey = np.empty(first.shape, np.float32)
    for rows in bands(first.shape):
        grey[rows] = pixels[rows].astype(np.float32) @ _LUMA
    return _scaled(grey, 255)


def _scaled(pixels: Image.Image | np.ndarray, top: int) -> np.ndarray:
    values = np.array(pixels, np.float32)
    values /= np.float32(top)
    return values


def _bits(largest: int, significant: int | None, path: Path) -> int:
    """Bits that a 16-bit image uses; `significant`: as it says itself."""
    if significant is None:
        bits = next(bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits)
    else:  # a conforming writer has scaled the values to all 16 bits
        bits = significant if largest < 2**significant else 16
    if bits < 16:
        announce(bits, path)
    return bits


def announce(bits: int, path: Path | str) -> None:
    """Log that a 16-bit image is scaled as one of fewer bits, unless it was told."""
    if not NARROW[bits]:
        NARROW[bits] = 1
        logger.info("%s: is a 16-bit image of %d-bit values; such images are scaled by %d", path, bits, 2**bits - 1)
