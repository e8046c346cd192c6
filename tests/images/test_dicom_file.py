"""DICOM files that would fill the memory."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import validate_value

from vivid_monai.deploy.eligibility import objections
from vivid_monai.images import dicom_file
from vivid_monai.images.dicom_file import dcmread, without_values
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


WORD = "Muster^Zebra"


@pytest.mark.parametrize(
    ("tag", "representation", "told"),
    [
        (0x00280008, "IS", "its NumberOfFrames is not a number"),
        (0x00280004, "CS", r"is not a grey image \(photometric interpretation of another kind\)"),
        (0x00280010, "US", "its Rows is not one whole number"),
        (0x00281053, "DS", "its RescaleSlope is not a number"),
        (0x00080005, "CS", None),
        (0x0020000D, "UI", None),
    ],
)
def test_no_message_and_no_warning_holds_what_a_tag_says(
    tmp_path: Path, tag: int, representation: str, told: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    path = save(tmp_path / "a.dcm")
    content = pydicom.dcmread(path)
    value = WORD.encode()
    content[tag] = RawDataElement(Tag(tag), representation, len(value), value, 0, False, True)
    content.save_as(path)
    recwarn.clear()
    if told is None:
        read_image(path)
    else:
        with pytest.raises(ImageError, match=told) as error:
            read_image(path)
        assert "Zebra" not in str(error.value)
    objections(str(path), {"modality": ["DX"], "anatomy": ["chest"], "view": []})
    assert not [str(one.message) for one in recwarn if "Zebra" in str(one.message)]


def test_what_pydicom_says_is_told_without_what_it_quotes() -> None:
    with pytest.raises(ValueError, match="Zebra") as raised:
        validate_value("CS", "Zebra, lower case", pydicom.config.RAISE)
    assert "Zebra" not in without_values(raised.value)
    assert "Invalid value for VR CS: …" in without_values(raised.value)
    assert without_values(ValueError("its 'Rows' are 3")) == "its 'Rows' are 3"
