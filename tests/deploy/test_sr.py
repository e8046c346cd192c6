"""Predictions as DICOM SR: what stands in the report, and what happens where none can be written."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

hd = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'vivid-monai[dicom-sr]'")

import pydicom  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)

from tests.deploy.sr_case import ALGORITHM, Observation, observations, record, source, statements  # noqa: E402
from vivid_monai.deploy.sr import (  # noqa: E402
    NOTICE,
    Algorithm,
    finding_code,
    write_sr,
)
from vivid_monai.errors import VividError  # noqa: E402
from vivid_monai.ums.label_space import load_label_space  # noqa: E402
from vivid_monai.ums.record import Finding  # noqa: E402

WORDS = {"present": "Present", "absent": "Absent", "uncertain": "Undetermined"}
CLASSES = {
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "CT": CTImageStorage,
    "SC": SecondaryCaptureImageStorage,
}


def findings(space: str) -> dict[str, Finding]:
    """Every state, beginning with None, and a score for all that have one."""
    states = (None, "present", "absent", "uncertain")
    fields = load_label_space(space).fields
    return {
        field: Finding(states[i % 4], score=None if i % 4 == 0 else round(i / (len(fields) + 1), 6))
        for i, field in enumerate(fields)
    }


@pytest.mark.parametrize("space", ["chexpert-14", "chexpert-12", "nih-14", "nih-shared"])
@pytest.mark.parametrize("kind", CLASSES)
def test_every_answer_is_found_again(tmp_path, space, kind):
    image = source(tmp_path / "image.dcm", CLASSES[kind])
    answers = findings(space)
    write_sr(record(answers, space), image, tmp_path / "report.dcm", algorithm=ALGORITHM)

    instance = pydicom.dcmread(image).SOPInstanceUID
    expected = {}
    for field, finding in answers.items():
        if finding.state is not None:
            code, site = finding_code(field, space)
            expected[field] = Observation(
                (code.value, code.scheme_designator),
                WORDS[finding.state],
                finding.score,
                site and site.value,
                (instance,),
                ("chest_xray_vit", "0.1.0", f"fingerprint {ALGORITHM.fingerprint}"),
            )
    assert len(expected) in (6, 9, 10)
    assert observations(tmp_path / "report.dcm") == expected
    assert statements(tmp_path / "report.dcm") == ["Succeeded", NOTICE]


def test_the_document_says_what_it_is_and_where_it_belongs(tmp_path):
    image = source(tmp_path / "image.dcm")
    write_sr(record({"Edema": Finding("present", score=0.9)}), image, tmp_path / "a.dcm", algorithm=ALGORITHM)
    stored, report = pydicom.dcmread(image), pydicom.dcmread(tmp_path / "a.dcm")
    assert report.SOPClassUID.name == "Comprehensive SR Storage"
    assert report.Modality == "SR"
    assert report.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        *("COMPLETE", "UNVERIFIED", "PRELIMINARY"),
    )
    assert (report.SeriesNumber, report.InstanceNumber) == (9001, 1)
    assert report.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99VIVID"
    (evidence,) = hd.sr.srread(tmp_path / "a.dcm").get_evidence()
    assert evidence == (
        *(stored.StudyInstanceUID, stored.SeriesInstanceUID, stored.SOPInstanceUID, stored.SOPClassUID),
    )
    assert report.StudyInstanceUID == stored.StudyInstanceUID
    new = {report.SeriesInstanceUID, report.SOPInstanceUID}
    assert len(new | {stored.SeriesInstanceUID, stored.SOPInstanceUID}) == 4
    write_sr(record({"Edema": Finding("present")}), image, tmp_path / "b.dcm", algorithm=ALGORITHM)
    again = pydicom.dcmread(tmp_path / "b.dcm")
    assert not new & {again.SeriesInstanceUID, again.SOPInstanceUID}


def test_the_algorithm_is_the_observer(tmp_path):
    image, answer = source(tmp_path / "image.dcm"), record({"Edema": Finding("absent")})
    others = {"same": ALGORITHM, "retrained": Algorithm("chest_xray_vit", "0.1.0", "e1" * 32)}
    seen = {}
    for name, algorithm in others.items():
        write_sr(answer, image, tmp_path / name, algorithm=algorithm, not_assessed="blank" if name == "same" else None)
        (context,) = hd.sr.srread(tmp_path / name).content.get_observer_contexts()
        device = context.observer_identifying_attributes
        assert device.name == "chest_xray_vit 0.1.0"
        assert device.serial_number == algorithm.fingerprint
        equipment = pydicom.dcmread(tmp_path / name)
        assert equipment.ManufacturerModelName == "chest_xray_vit"
        assert (equipment.SoftwareVersions, equipment.DeviceSerialNumber) == ("0.1.0", algorithm.fingerprint)
        seen[name] = device.uid
    assert seen["same"] != seen["retrained"]
    write_sr(answer, image, tmp_path / "again", algorithm=ALGORITHM)
    (context,) = hd.sr.srread(tmp_path / "again").content.get_observer_contexts()
    assert context.observer_identifying_attributes.uid == seen["same"]


def test_an_image_that_was_not_assessed_has_a_reason_and_no_finding(tmp_path):
    image, path = source(tmp_path / "image.dcm"), tmp_path / "report.dcm"
    reason = "it is unlike the images of the training – a knee?"
    write_sr(record(findings("chexpert-14")), image, path, algorithm=ALGORITHM, not_assessed=reason)
    assert observations(path) == {}
    assert statements(path) == ["Not Attempted", f"This image was not assessed: {reason}", NOTICE]
    assert pydicom.dcmread(path).CompletionFlag == "PARTIAL"
    (evidence,) = hd.sr.srread(path).get_evidence()
    assert evidence[2] == pydicom.dcmread(image).SOPInstanceUID
    text = str(pydicom.dcmread(path))
    assert "Pneumothorax" not in text
    assert "Probability" not in text


def test_a_record_without_any_state_is_not_assessed_either(tmp_path):
    image, path = source(tmp_path / "image.dcm"), tmp_path / "report.dcm"
    write_sr(record({"Edema": Finding(None), "Fracture": Finding(None)}), image, path, algorithm=ALGORITHM)
    assert observations(path) == {}
    assert statements(path)[:2] == [
        *("Not Attempted", "This image was not assessed: the algorithm answers none of its fields"),
    ]


def test_a_state_without_score_has_no_probability(tmp_path):
    path = tmp_path / "report.dcm"
    answers = {"Edema": Finding("present"), "Fracture": Finding("absent", score=0.0), "Mass": Finding(None, score=0.5)}
    write_sr(record(answers), source(tmp_path / "image.dcm"), path, algorithm=ALGORITHM)
    assert {field: one.probability for field, one in observations(path).items()} == {"Edema": None, "Fracture": 0.0}


def test_sources_that_cannot_be_reported_on(tmp_path):
    answer, path = record({"Edema": Finding("present")}), tmp_path / "report.dcm"
    (tmp_path / "text.dcm").write_text("no DICOM" * 100)
    write_sr(answer, source(tmp_path / "image.dcm"), tmp_path / "sr.dcm", algorithm=ALGORITHM)
    cases = {
        tmp_path / "text.dcm": r"no report can be made for this file \(InvalidDicomError\)",
        tmp_path / "missing.dcm": r"no report can be made for this file \(FileNotFoundError\)",
        tmp_path / "sr.dcm": "none of DICOM's images",
        source(tmp_path / "a.dcm", "1.2.3.4"): "none of DICOM's images",
        source(tmp_path / "b.dcm", without=("SOPInstanceUID",)): "has no SOPInstanceUID",
        source(tmp_path / "c.dcm", StudyInstanceUID=""): "has no StudyInstanceUID",
    }
    for image, message in cases.items():
        with pytest.raises(VividError, match=message) as told:
            write_sr(answer, image, path, algorithm=ALGORITHM)
        assert str(told.value).startswith(f"{image}: ")
    assert not path.exists()


def test_the_image_is_never_written_over(tmp_path):
    image = source(tmp_path / "image.dcm")
    before = image.read_bytes()
    with pytest.raises(VividError, match="is the image itself"):
        write_sr(record({}), image, tmp_path / "x" / ".." / "image.dcm", algorithm=ALGORITHM)
    assert image.read_bytes() == before


@pytest.mark.parametrize("part", ["", " ", "a" * 65, "a\\b"])
def test_an_algorithm_is_named_in_dicoms_limits(part):
    for parts in ((part, "1", "f"), ("n", part, "f"), ("n", "1", part)):
        with pytest.raises(VividError, match="needs 1 to 64 characters"):
            Algorithm(*parts)


def test_without_highdicom_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(VividError, match=r'highdicom is not installed: pip install "vivid-monai\[dicom-sr\]"'):
        write_sr(record({}), source(tmp_path / "image.dcm"), tmp_path / "report.dcm", algorithm=ALGORITHM)


def test_a_full_disk_leaves_the_report_that_was_there(tmp_path, monkeypatch):
    image, path = source(tmp_path / "image.dcm"), tmp_path / "out" / "report.dcm"
    write_sr(record({"Edema": Finding("present")}), image, path, algorithm=ALGORITHM)
    before = path.read_bytes()

    def full(self, data):
        self.open("wb").write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(VividError, match=r"cannot be written: .*No space left"):
        write_sr(record({"Edema": Finding("absent")}), image, path, algorithm=ALGORITHM)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(tmp_path):
    image = source(tmp_path / "image.dcm")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VividError, match="cannot be written"):
        write_sr(record({}), image, tmp_path / "file" / "report.dcm", algorithm=ALGORITHM)


def dciodvfy_errors(path: Path) -> list[str]:
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    assert "ComprehensiveSR" in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed: apt install dicom3tools")
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("reason", [None, "it is a knee"])
def test_dciodvfy_finds_no_error(tmp_path, kind, reason):
    image, path = source(tmp_path / "image.dcm", CLASSES[kind]), tmp_path / "report.dcm"
    write_sr(record(findings("chexpert-14")), image, path, algorithm=ALGORITHM, not_assessed=reason)
    assert dciodvfy_errors(path) == []


@pytest.mark.real_data
def test_a_real_radiograph(real_data, tmp_path):
    image, path = real_data / "cr_dicom/cr_pa_monochrome2.dcm", tmp_path / "report.dcm"
    write_sr(record(findings("nih-14"), "nih-14"), image, path, algorithm=ALGORITHM)
    stored, report = pydicom.dcmread(image, stop_before_pixels=True), pydicom.dcmread(path)
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
        assert report[name].value == stored[name].value
    assert {one.images for one in observations(path).values()} == {(stored.SOPInstanceUID,)}
    assert len(observations(path)) == 10
    assert shutil.which("dciodvfy") is None or dciodvfy_errors(path) == []
