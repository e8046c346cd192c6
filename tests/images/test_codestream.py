"""JPEG and JPEG-LS streams in files and in DICOM: padded, cut off, cut and closed again, of another size."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from vivid_monai.images.codestream import jpeg_stream
from vivid_monai.images.read import ImageError, read_image
from vivid_monai.phantom.phantom import generate

from .made_dicom import save

END = b"\xff\xd9"


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return generate(seed=0, index=3, size=96).image


def jpeg(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def wrapped(folder: Path, frame: bytes, pixels: np.ndarray) -> Path:
    path = save(folder / "jpeg.dcm", pixels, bits=8)
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([frame])
    ds.save_as(path)
    return path


def jpeg_ls(folder: Path, pixels: np.ndarray) -> tuple[Path, bytes]:
    pytest.importorskip("jpeg_ls")
    path = save(folder / "ls.dcm", pixels.astype(np.uint16) * 16, compress=JPEGLSLossless)
    return path, get_frame(dcmread(path).PixelData, 0, number_of_frames=1)


def with_frame(path: Path, frame: bytes) -> Path:
    ds = dcmread(path)
    ds.PixelData = encapsulate([frame])
    ds.save_as(path)
    return path


@pytest.mark.parametrize("after", [b"\0", b"\0" * 20, b"\0\0\xff\xff" * 2000, b"text \xff\xd8\xff\xe0 more"])
def test_what_follows_the_end_does_not_matter(tmp_path: Path, picture: np.ndarray, after: bytes) -> None:
    data = jpeg(picture, quality=90)
    expected = read_image(wrapped(tmp_path, data, picture))
    assert np.array_equal(read_image(wrapped(tmp_path, data + after, picture)), expected)
    (tmp_path / "a.jpg").write_bytes(data + after)
    assert np.abs(read_image(tmp_path / "a.jpg") - expected).max() < 3 / 255  # two decoders
    path, frame = jpeg_ls(tmp_path, picture)
    expected = read_image(path)
    assert np.array_equal(read_image(with_frame(path, frame + after)), expected)


def test_an_end_mark_in_a_comment_or_after_the_cut_is_not_the_end(tmp_path: Path, picture: np.ndarray) -> None:
    data = jpeg(picture, comment=END + b"thumbnail" + END)
    assert jpeg_stream(data)[:4] == (96, 96, 1, 8)
    assert jpeg_stream(data).end == len(data) - 2
    with pytest.raises(ImageError, match="has no end"):
        read_image(wrapped(tmp_path, data[: len(data) // 2], picture))
    with pytest.raises(ImageError, match="truncated"):
        read_image(wrapped(tmp_path, data[: len(data) // 2] + b"\0" * 30 + END, picture))


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 95},
        {"quality": 30},
        {"optimize": True},
        {"progressive": True},
        {"restart_marker_blocks": 7},
        {"restart_marker_rows": 1},
    ],
)
def test_a_cut_stream_with_an_end_mark_is_refused_and_a_whole_one_is_not(
    tmp_path: Path, picture: np.ndarray, options: dict
) -> None:
    data = jpeg(picture, **options)
    few = () if "progressive" in options else (1, 2)  # the last bytes of its last scan may change nothing
    for lost in (0, *few, 0.02, 0.05, 0.1):
        n = lost if lost in (0, 1, 2) else int(len(data) * lost)
        cut = data[: len(data) - 2 - n].rstrip(b"\xff") + END
        (tmp_path / "a.jpg").write_bytes(cut)
        for path in (tmp_path / "a.jpg", wrapped(tmp_path, cut, picture)):
            if lost == 0:
                assert read_image(path).shape == (1, 96, 96)
            else:
                with pytest.raises(ImageError, match=r"its JPEG data ends before the image does"):
                    read_image(path)


def test_a_stream_cut_right_before_a_restart_mark_is_refused(tmp_path: Path, picture: np.ndarray) -> None:
    data = jpeg(picture, restart_marker_rows=1)
    cut = data[: max(data.rfind(b"\xff%c" % mark) for mark in range(0xD0, 0xD8))] + END
    (tmp_path / "a.jpg").write_bytes(cut)
    for path in (tmp_path / "a.jpg", wrapped(tmp_path, cut, picture)):
        with pytest.raises(ImageError, match=r"truncated|unreadable"):
            read_image(path)


def test_a_cut_jpeg_ls_stream_with_an_end_mark_is_refused(tmp_path: Path, picture: np.ndarray) -> None:
    path, frame = jpeg_ls(tmp_path, picture)
    for part in (0.999, 0.98, 0.95, 0.9):
        with pytest.raises(ImageError, match="its JPEG data ends before the image does"):
            read_image(with_frame(path, frame[: int(len(frame) * part)].rstrip(b"\xff") + END))


def test_a_colour_jpeg_is_whole_too(tmp_path: Path, picture: np.ndarray) -> None:
    colour = np.dstack([picture, picture // 2, 255 - picture])
    (tmp_path / "a.jpg").write_bytes(jpeg(colour))
    assert read_image(tmp_path / "a.jpg").shape == (1, 96, 96)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGBaseline8Bit])
def test_a_stream_of_another_size_is_refused_before_it_is_decoded(
    tmp_path: Path, picture: np.ndarray, syntax: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if syntax == JPEG2000Lossless:
        path = save(tmp_path / "a.dcm", picture, bits=8, compress=syntax)
    else:
        path = wrapped(tmp_path, jpeg(picture), picture)
    assert read_image(path).shape == (1, 96, 96)
    ds = dcmread(path)
    ds.Rows = 48
    ds.save_as(path)
    monkeypatch.setattr("vivid_monai.images.dicom_file.pixel_array", None)
    with pytest.raises(ImageError, match=r"says 96 x 48 grey pixels, its compressed data 96 x 96 of 1 channels"):
        read_image(path)
