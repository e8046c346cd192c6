"""Patient and study of a report: the source's, whatever their state, and in the report alone."""

import logging
import traceback
import warnings

import pytest

hd = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'vivid-monai[dicom-sr]'")

import pydicom  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402

from tests.deploy.sr_case import ALGORITHM, PATIENT, observations, record, source  # noqa: E402
from vivid_monai.deploy.sr import write_sr  # noqa: E402
from vivid_monai.deploy.sr_source import KNOWN_BY, TYPE_2  # noqa: E402
from vivid_monai.errors import VividError  # noqa: E402
from vivid_monai.ums.record import Finding  # noqa: E402

ANSWER = record({"Edema": Finding("present", score=0.75)})


def report_on(image):
    path = image.with_name("report.dcm")
    write_sr(ANSWER, image, path, algorithm=ALGORITHM)
    assert observations(path)["Edema"].probability == 0.75
    return pydicom.dcmread(path)


def test_patient_and_study_are_the_sources(tmp_path):
    report = report_on(source(tmp_path / "image.dcm"))
    assert {name: str(report[name].value) for name in PATIENT} == PATIENT


@pytest.mark.parametrize("missing", [(name,) for name in TYPE_2] + [TYPE_2], ids=lambda names: names[-1])
def test_attributes_of_type_2_may_be_missing(tmp_path, missing):
    report = report_on(source(tmp_path / "image.dcm", without=missing))
    for name in TYPE_2:
        assert str(report[name].value or "") == ("" if name in missing else PATIENT[name])


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 144", "Люкceмбypг"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 192", "Sørensen^Åse=王^小东"),
    ],
)
def test_names_keep_their_characters(tmp_path, character_set, name):
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = name.split("=")[-1], "TEXT"
    tags = {"SpecificCharacterSet": character_set, "PatientName": name, "OtherPatientIDsSequence": [other]}
    report = report_on(source(tmp_path / "image.dcm", **tags))
    assert str(report.PatientName) == name
    assert report.OtherPatientIDsSequence[0].PatientID == name.split("=")[-1]


@pytest.mark.parametrize("keyword", KNOWN_BY)
def test_a_name_that_cannot_be_decoded_is_not_guessed(tmp_path, keyword):
    image = source(tmp_path / "image.dcm", **{keyword: "Müller"})
    image.write_bytes(image.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 192"))
    with pytest.raises(VividError, match=f"{keyword} is not in the character set") as told:
        report_on(image)
    assert "ller" not in "".join(traceback.format_exception(told.value))


def test_other_text_that_cannot_be_decoded_is_left_out(tmp_path):
    image = source(tmp_path / "image.dcm", StudyDescription="für Müller")
    image.write_bytes(image.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 192"))
    assert "StudyDescription" not in report_on(image)


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("PatientBirthDate", "17.03.58", ""),
        ("StudyDate", "Feb 29", ""),
        ("StudyTime", "13:15", ""),
        ("PatientSex", "U", ""),
        ("PatientSex", "männlich", ""),
        ("PatientAge", "62", None),
        ("PatientWeight", "70,5", None),
        ("PatientSize", "1.8", 1.8),
        ("PatientID", "4" * 70, "4" * 70),
        ("AccessionNumber", "A" * 20, "A" * 20),
        ("StudyInstanceUID", "1.2.03", "1.2.03"),
        ("StudyInstanceUID", "1.2." + "3" * 70, "1.2." + "3" * 70),
    ],
)
def test_values_that_break_the_rules(tmp_path, keyword, value, expected):
    image = source(tmp_path / "image.dcm", **{keyword: value.replace(",", ".")})
    image.write_bytes(image.read_bytes().replace(b"70.5", b"70,5"))  # pydicom does not make such a number
    report = report_on(image)
    assert (report[keyword].value if keyword in report else None) == expected


def test_the_id_is_kept_where_pydicom_is_strict(tmp_path):
    image = source(tmp_path / "image.dcm", PatientID="4" * 70)
    with pydicom.config.strict_reading():
        assert pydicom.config.settings.reading_validation_mode == pydicom.config.RAISE
        write_sr(ANSWER, image, tmp_path / "report.dcm", algorithm=ALGORITHM)
    assert pydicom.dcmread(tmp_path / "report.dcm").PatientID == "4" * 70


def identifiers(image):
    ds = pydicom.dcmread(image)
    uids = [ds[name].value for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")]
    return [*(value for value in PATIENT.values() if len(value) > 1), "Roe", "Quentin", *uids]


def test_nothing_of_the_patient_is_logged_or_warned_of(tmp_path, caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("highdicom.base").setLevel(logging.DEBUG)
    warnings.simplefilter("always")
    image = source(tmp_path / "image.dcm", PatientName="Roe", PatientID="4" * 70)
    before = logging.root.manager.disable
    report_on(image)
    said = caplog.text + "".join(capfd.readouterr()) + "".join(str(one.message) for one in recwarn)
    assert [value for value in (*identifiers(image), "4" * 70) if value in said] == []
    assert logging.root.manager.disable == before
    assert pydicom.config.settings.reading_validation_mode == pydicom.config.WARN


def test_nothing_of_the_patient_is_in_a_message(tmp_path, monkeypatch):
    image = source(tmp_path / "image.dcm")

    def fails(evidence, **_):
        raise ValueError(f"cannot handle {evidence[0]}")

    monkeypatch.setattr(hd.sr, "ComprehensiveSR", fails)
    with pytest.raises(VividError, match=r"no report can be made for this file \(ValueError\)") as told:
        report_on(image)
    shown = "".join(traceback.format_exception(told.value))
    assert [value for value in identifiers(image) if value in shown] == []
    assert not image.with_name("report.dcm").exists()
    assert logging.root.manager.disable == logging.NOTSET


def test_nothing_of_the_record_that_could_name_the_patient_is_written(tmp_path):
    image = source(tmp_path / "image.dcm")
    report_on(image)
    data = image.with_name("report.dcm").read_bytes()
    assert b"somewhere" not in data
    assert b"not-recorded" not in data
