"""PNG and JPEG, read by Pillow with the checks it leaves out."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""Images of more pixels are refused as decompression bombs (a large mammogram has 30 million)."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, the weights of JPEG's own Y channel


def read_png(path: Path) -> np.ndarray:
    """Read a PNG of 1, 2, 4, 8 or 16 bits as float32 (H, W) in [0, 1].

    The full range of the bit depth is scaled (255, 65,535, …), never the range of the image. Palette and colour become
    grey: one channel where all three are equal, luminance (ITU-R BT.601) otherwise. An alpha channel must be opaque.
    16-bit colour and 16-bit alpha are refused, because the decoder would halve their depth. Checksums are verified:
    the decoder alone lets about one damaged file in ten pass. An EXIF orientation is applied.

    Raises:
        ValueError, OSError, SyntaxError: for a damaged file or one of the kinds above.
    """
    data = path.read_bytes()
    if len(data) > 25 and data[24] == 16 and data[25] != 0:  # IHDR: bit depth, colour type
        raise ValueError("16-bit colour or alpha is not supported; save it as 16-bit grey")
    _refuse_lenient_pillow()
    with _open(io.BytesIO(data), "PNG") as image:
        _check_size(image)
        image.verify()
    with _open(io.BytesIO(data), "PNG") as image:
        return _grey(image)


def read_jpeg(path: Path) -> np.ndarray:
    """Read an 8-bit JPEG, grey or colour, as float32 (H, W) in [0, 1], as :func:`read_png` does; CMYK is refused.

    The EXIF orientation is applied: H and W are those of the image as a viewer shows it.
    """
    _refuse_lenient_pillow()
    with _open(path, "JPEG") as image:
        _check_size(image)
        return _grey(image)


def read_png_labels(path: Path) -> np.ndarray:
    """The stored values of a grey or palette PNG of at most 8 bits, uint8 (H, W): of a mask, whose values are names."""
    _refuse_lenient_pillow()
    with _open(path, "PNG") as image:
        _check_size(image)
        image.load()
        if image.mode not in ("1", "L", "P"):
            raise ValueError(f"colour mode {image.mode} is not that of a mask; save it as 8-bit grey")
        return np.asarray(image).astype(np.uint8)


def _open(source: io.BytesIO | Path, form: str) -> Image.Image:
    try:
        return Image.open(source, formats=[form])
    except UnidentifiedImageError as error:  # its own words hold the address of the buffer, another one each time
        raise ValueError("the header is damaged or cut off") from error


def _refuse_lenient_pillow() -> None:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, which fills truncated images up; turn it off")


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS:,} allowed")
    if (frames := getattr(image, "n_frames", 1)) != 1:
        raise ValueError(f"holds {frames} frames; save the one that is meant as a single image")


def _grey(image: Image.Image) -> np.ndarray:
    image.load()
    image = ImageOps.exif_transpose(image)
    if "transparency" in image.info:
        if image.mode.startswith("I"):
            raise ValueError("16-bit grey with a transparent value is not supported; save it without")
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGB")

    if image.mode == "1":
        return np.asarray(image, np.float32)
    if image.mode == "L":
        return np.asarray(image, np.float32) / np.float32(255)
    if image.mode in ("I;16", "I"):  # Pillow's two names for 16-bit grey
        return np.asarray(image, np.float32) / np.float32(65535)
    if image.mode not in ("LA", "RGB", "RGBA"):
        raise ValueError(f"colour mode {image.mode} is not supported; save it as grey")
    pixels = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        if (pixels[..., -1] != 255).any():
            raise ValueError("has transparent pixels, whose grey value is undefined; save it without alpha")
        pixels = pixels[..., :-1]
    first = pixels[..., 0]
    if (pixels == first[..., None]).all():
        return first.astype(np.float32) / np.float32(255)
    return pixels.astype(np.float32) @ _LUMA / np.float32(255)
