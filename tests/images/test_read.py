"""What holds for every format: content decides, shapes are (1, H, W), every failure names the file."""

import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.transforms import Compose
from PIL import Image

from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import ReadImaged
from vivid_monai.images.read import ImageError, image_error_behind, one_line, read_image

RAMP = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7


def png(path: Path) -> Path:
    Image.fromarray(RAMP).save(path, "PNG")
    return path


def test_the_result_is_float32_rows_first_and_contiguous(tmp_path: Path) -> None:
    image = read_image(png(tmp_path / "a.png"))
    assert image.shape == (1, 5, 7)
    assert image.dtype == np.float32
    assert image.flags.c_contiguous
    assert image[0, 1, 0] == np.float32(49 / 255)


def test_the_content_decides_not_the_extension(tmp_path: Path) -> None:
    expected = read_image(png(tmp_path / "a.png"))
    for name in ("b.jpg", "c.dcm", "d", "e.nii"):
        assert np.array_equal(read_image(png(tmp_path / name)), expected)


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    assert read_image(str(png(tmp_path / "a.png"))).shape == (1, 5, 7)


@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"Patient,Finding\n1,Edema\n" * 50, "neither PNG"),
        (b"\x89PNG\r\n\x1a\n", "unreadable PNG: the header is damaged or cut off"),
        (b"\xff\xd8\xff" + b"\0" * 400, "unreadable JPEG"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 400, "unreadable DICOM"),
        (b"\0" * 128 + b"DICM", "unreadable DICOM"),
        (gzip.compress(b"not a volume" * 50, mtime=0), "unreadable NIfTI"),
    ],
)
def test_what_is_no_image_is_an_error_that_names_file_and_cause(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_file_and_a_folder_are_errors_that_say_so(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png: cannot be opened \(No such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image(tmp_path)


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: is a pipe"):
        read_image(tmp_path / "a.png")


def test_what_a_decoder_says_at_length_is_cut(tmp_path: Path) -> None:
    assert one_line(ValueError("much\n" * 100)).endswith("much …")
    assert len(one_line(ValueError("much\n" * 100))) <= 240


def test_slice_and_window_are_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png")
    with pytest.raises(ImageError, match="slice and window cannot be applied to a PNG"):
        read_image(path, slice=0, window=(40, 400))


@pytest.mark.parametrize("window", [(40, 0), (40, -1), (float("nan"), 10), (1, 2, 3)])
def test_an_impossible_window_is_the_callers_mistake_not_the_files(tmp_path: Path, window: tuple[float, float]) -> None:
    with pytest.raises(VividError, match="window must be") as caught:
        read_image(png(tmp_path / "a.png"), window=window)
    assert not isinstance(caught.value, ImageError)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    volume = np.ones((4, 5, 3), np.float32)
    volume[1, 2, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ImageError, match="not finite"):
        read_image(tmp_path / "a.nii", slice=1, window=(0, 2))


def test_an_image_error_is_found_behind_monais_wrapping(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        Compose([Compose([ReadImaged("image")])])({"image": tmp_path / "nowhere.png"})
    found = image_error_behind(caught.value)
    assert isinstance(found, ImageError)
    assert "nowhere.png" in str(found)
    assert image_error_behind(RuntimeError("other")) is None


@pytest.mark.real_data
def test_nih_pngs_are_read_as_their_bytes(real_data: Path) -> None:
    for path in sorted((real_data / "nih/images_001/images").glob("*.png"))[:5]:
        with Image.open(path) as image:
            expected = np.asarray(image, np.float32)[None] / np.float32(255)
        assert np.array_equal(read_image(path), expected)
