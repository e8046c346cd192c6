"""PNG, JPEG, TIFF and BMP: every bit depth and colour kind, orientation, damage."""

import io
import zlib
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from vivid_monai.images import raster
from vivid_monai.images.read import ImageError, read_image

RAMP = (np.arange(12 * 20, dtype=np.uint16).reshape(12, 20) * 273).astype(np.uint16)
GREY = (RAMP >> 8).astype(np.uint8)


def save(array: np.ndarray, path: Path, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_sixteen_bits_are_scaled_by_65535(tmp_path: Path) -> None:
    image = read_image(save(RAMP, tmp_path / "a.png"))
    assert image.shape == (1, 12, 20)
    assert np.array_equal(image[0], RAMP.astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_that_hold_fewer_are_scaled_by_these(tmp_path: Path, bits: int, kind: str) -> None:
    held = RAMP >> (16 - bits)
    expected = held.astype(np.float32) / np.float32(2**bits - 1)
    assert np.array_equal(read_image(save(held, tmp_path / f"a.{kind}"))[0], expected)


def test_the_first_value_that_fewer_bits_cannot_hold_is_of_more(tmp_path: Path) -> None:
    for largest, bits in ((4095, 12), (4096, 14), (16383, 14), (16384, 16)):
        held = np.array([[0, largest]], np.uint16)
        assert read_image(save(held, tmp_path / "a.png")).max() == np.float32(largest) / np.float32(2**bits - 1)


@pytest.mark.parametrize(("held", "top"), [(RAMP >> 6, 4095), (RAMP, 65535), (RAMP >> 3, 65535)])
def test_significant_bits_are_those_the_file_says_where_they_are_enough(
    tmp_path: Path, held: np.ndarray, top: int
) -> None:
    data = save(held, tmp_path / "a.png").read_bytes()
    chunk = b"sBIT\x0c"
    sbit = b"\0\0\0\1" + chunk + zlib.crc32(chunk).to_bytes(4)
    (tmp_path / "a.png").write_bytes(data[:33] + sbit + data[33:])  # after IHDR
    assert np.array_equal(read_image(tmp_path / "a.png")[0], held.astype(np.float32) / np.float32(top))


def test_it_is_told_once_that_sixteen_bits_hold_fewer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raster, "NARROW", bytearray(16))
    for name in ("a.png", "b.png"):
        read_image(save(RAMP >> 4, tmp_path / name))
    (said,) = caplog.messages
    assert said.endswith("a.png: is a 16-bit image of 12-bit values; such images are scaled by 4095")


@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="processes share nothing")
def test_it_is_told_once_by_all_processes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(RAMP >> 4, tmp_path / "a.png")
    raster.NARROW[12] = 0
    worker = get_context("fork").Process(target=read_image, args=(path,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    read_image(path)
    assert not caplog.messages


def test_a_dark_image_stays_dark(tmp_path: Path) -> None:
    image = read_image(save(np.full((3, 4), 5, np.uint8), tmp_path / "a.png"))
    assert np.array_equal(image, np.full((1, 3, 4), np.float32(5 / 255)))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    image = read_image(save(GREY > 100, tmp_path / "a.png"))
    assert np.array_equal(image[0], (GREY > 100).astype(np.float32))


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_fill_the_range(tmp_path: Path, bits: int) -> None:
    image = Image.fromarray(np.array([[0, 255, 0], [255, 255, 0]], np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255])
    image.putdata([0, 1, 2, 3, 0, 1])
    image.save(tmp_path / "a.png", bits=bits)
    assert np.allclose(read_image(tmp_path / "a.png")[0] * 3, [[0, 1, 2], [3, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA", "P"])
def test_grey_kept_as_colour_is_exactly_that_grey(tmp_path: Path, mode: str) -> None:
    expected = read_image(save(GREY, tmp_path / "grey.png"))
    assert np.array_equal(read_image(save(GREY, tmp_path / "colour.png", mode)), expected)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    colour = np.zeros((2, 3, 3), np.uint8)
    colour[0, :, :] = np.eye(3, dtype=np.uint8) * 255
    image = read_image(save(colour, tmp_path / "a.png"))
    assert np.allclose(image[0, 0], [0.299, 0.587, 0.114], atol=1e-6)


def test_transparency_is_refused_and_opaque_alpha_is_not(tmp_path: Path) -> None:
    rgba = np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)])
    rgba[0, 0, 3] = 254
    with pytest.raises(ImageError, match="transparent"):
        read_image(save(rgba, tmp_path / "a.png"))
    palette = Image.fromarray(GREY).convert("P")
    palette.save(tmp_path / "b.png", transparency=int(np.asarray(palette)[0, 0]))
    with pytest.raises(ImageError, match="transparent"):
        read_image(tmp_path / "b.png")


def test_sixteen_bit_colour_is_refused_rather_than_halved(tmp_path: Path) -> None:
    data = bytearray(save(np.dstack([GREY] * 3), tmp_path / "a.png").read_bytes())
    data[24] = 16
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="16-bit colour"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint8)
    data = save(noise, tmp_path / f"a.{kind}").read_bytes()
    assert read_image(tmp_path / f"a.{kind}").shape == (1, 40, 60)
    for part in (0.1, 0.5, 0.9):
        (tmp_path / "cut").write_bytes(data[: int(len(data) * part)])
        with pytest.raises(ImageError, match="cut: unreadable"):
            read_image(tmp_path / "cut")


def test_no_damaged_png_passes_as_another_image(tmp_path: Path) -> None:
    path = save(GREY, tmp_path / "a.png")
    data, whole = path.read_bytes(), read_image(path)
    passed = []
    for position in range(8, len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        try:
            assert np.array_equal(read_image(path), whole)
            passed.append(position)
        except ImageError:
            continue
    assert all(position >= len(data) - 12 for position in passed)  # within the empty last chunk


def test_pillow_set_to_fill_truncated_images_up_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(GREY, tmp_path / "a.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
        read_image(path)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(GREY, tmp_path / "a.png")
    monkeypatch.setattr(raster, "MAX_PIXELS", GREY.size - 1)
    with pytest.raises(ImageError, match="20 x 12 pixels"):
        read_image(path)


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="2 frames"):
        read_image(tmp_path / "a.png")


def test_jpeg_is_grey_in_rows_and_columns(tmp_path: Path) -> None:
    grey = read_image(save(GREY, tmp_path / "a.jpg", quality=100))
    colour = read_image(save(GREY, tmp_path / "b.jpg", "RGB", quality=100))
    assert grey.shape == colour.shape == (1, 12, 20)
    assert np.abs(grey[0] - GREY / 255).max() < 3 / 255
    assert np.abs(grey - colour).max() < 3 / 255


def test_jpeg_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image = read_image(save(GREY, tmp_path / "a.jpg", quality=100, exif=exif))
    assert image.shape == (1, 20, 12)
    assert np.abs(image[0] - np.rot90(GREY, -1) / 255).max() < 3 / 255


def test_cmyk_jpeg_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="CMYK"):
        read_image(save(GREY, tmp_path / "a.jpg", "CMYK"))


def test_a_png_that_is_not_square_keeps_its_rows(tmp_path: Path) -> None:
    marked = np.zeros((3, 9), np.uint8)
    marked[2, 1] = 255
    buffer = io.BytesIO()
    Image.fromarray(marked).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert np.argwhere(read_image(tmp_path / "a.png")[0]).tolist() == [[2, 1]]


@pytest.mark.parametrize("mode", [None, "RGB", "RGBA", "P", "LA"])
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_a_tiff_is_read_as_a_png(tmp_path: Path, mode: str | None, options: dict) -> None:
    expected = read_image(save(GREY, tmp_path / "a.png"))
    assert np.array_equal(read_image(save(GREY, tmp_path / "a.tif", mode, **options)), expected)


@pytest.mark.parametrize("mode", [None, "RGB", "RGBA", "P"])
def test_a_bmp_is_read_as_a_png(tmp_path: Path, mode: str | None) -> None:
    expected = read_image(save(GREY, tmp_path / "a.png"))
    assert np.array_equal(read_image(save(GREY, tmp_path / "a.bmp", mode)), expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("pixels", [GREY, RAMP], ids=["8 bits", "16 bits"])
def test_a_tiff_whose_white_is_zero_is_inverted(tmp_path: Path, pixels: np.ndarray, order: str) -> None:
    expected = read_image(save(pixels, tmp_path / "a.png"))
    path = save(pixels.astype(pixels.dtype.newbyteorder(order)), tmp_path / "a.tif")
    assert np.array_equal(read_image(path), expected)
    data = bytearray(path.read_bytes())
    endian = "little" if data[:2] == b"II" else "big"
    tag = data.find((262).to_bytes(2, endian) + (3).to_bytes(2, endian))
    data[tag + 8 : tag + 10] = bytes(2)
    path.write_bytes(data)
    if endian == "big" and pixels is RAMP:  # which Pillow does not know
        with pytest.raises(ImageError, match="unreadable TIFF"):
            read_image(path)
    else:
        assert np.allclose(read_image(path), 1 - expected, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
def test_tiff_orientation_is_applied(tmp_path: Path, options: dict) -> None:
    expected = np.rot90(read_image(save(GREY, tmp_path / "a.png"))[0], -1)
    assert np.array_equal(read_image(save(GREY, tmp_path / "a.tif", tiffinfo={274: 6}, **options))[0], expected)


@pytest.mark.parametrize(
    ("array", "mode", "says"),
    [
        (GREY, "F", "more than 8 bits are not supported but as 16-bit grey"),
        (GREY, "I", "more than 8 bits are not supported but as 16-bit grey"),
        (GREY, "CMYK", "colour mode CMYK is not supported"),
    ],
)
def test_other_tiffs_are_refused(tmp_path: Path, array: np.ndarray, mode: str, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        read_image(save(array, tmp_path / "a.tif", mode))


@pytest.mark.parametrize("name", ["a.tif", "a.bmp"])
def test_a_truncated_tiff_or_bmp_is_refused(tmp_path: Path, name: str) -> None:
    data = save(GREY, tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 8 // 10])
    with pytest.raises(ImageError, match="unreadable"):
        read_image(tmp_path / name)


def test_a_tiff_of_two_pages_is_refused(tmp_path: Path) -> None:
    path = save(GREY, tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(GREY)])
    with pytest.raises(ImageError, match="2 frames"):
        read_image(path)
