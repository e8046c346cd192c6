"""DICOM files that would fill the memory."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from vivid_monai.images import dicom_file
from vivid_monai.images.dicom_file import dcmread
from vivid_monai.images.read import ImageError, read_image

from .made_dicom import RAMP, save


def test_a_deflated_file_is_read_as_another(tmp_path: Path) -> None:
    expected = read_image(save(tmp_path / "a.dcm"))
    assert np.array_equal(read_image(save(tmp_path / "b.dcm", syntax=DeflatedExplicitVRLittleEndian)), expected)


def test_a_deflated_file_is_bounded_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.dcm", syntax=DeflatedExplicitVRLittleEndian, ImageComments="")
    ds = pydicom.dcmread(path)
    ds.add_new(0x7FE10010, "LO", "private")
    ds.add_new(0x7FE11001, "OB", bytes(2**25))
    ds.save_as(path)
    assert path.stat().st_size < 2**16
    assert read_image(path).shape == (1, *RAMP.shape)
    monkeypatch.setattr(dicom_file, "MAX_INFLATED", 2**24)
    monkeypatch.setattr(pydicom, "dcmread", None)
    with pytest.raises(ImageError, match="inflates to more than the 16,777,216 bytes allowed"):
        read_image(path)


def test_options_and_errors_are_pydicoms(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm")
    assert "PixelData" not in dcmread(path, stop_before_pixels=True)
    (tmp_path / "b.dcm").write_bytes(b"no DICOM" * 40)
    with pytest.raises(pydicom.errors.InvalidDicomError):
        dcmread(tmp_path / "b.dcm")
