"""Patient and study of a report: the source's, whatever their state, and in the report alone."""

import logging
import traceback
import warnings

import pytest
from pydicom.sr._concepts_dict import concepts

from vivid_monai.deploy.sr import finding_code
from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import load_label_space

hd = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'vivid-monai[dicom-sr]'")

import pydicom  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402

from tests.deploy.sr_case import ALGORITHM, PATIENT, observations, record, source  # noqa: E402
from vivid_monai.deploy.sr import (  # noqa: E402
    KNOWN_BY,
    TYPE_2,
    write_sr,
)
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


STATED = {
    "chexpert-14": {
        "Cardiomegaly": "SCT 8186001",
        "Lung Opacity": "DCM 112001 in 39607008",
        "Edema": "SCT 19242006",
        "Consolidation": "SCT 95436008",
        "Pneumonia": "SCT 233604007",
        "Atelectasis": "SCT 46621007",
        "Pneumothorax": "SCT 36118008",
        "Pleural Effusion": "SCT 60046008",
        "Fracture": "SCT 125605004",
    },
    "nih-14": {
        "Atelectasis": "SCT 46621007",
        "Cardiomegaly": "SCT 8186001",
        "Effusion": "SCT 60046008",
        "Infiltration": "DCM 112121",
        "Mass": "SCT 4147007 in 39607008",
        "Nodule": "SCT 27925004 in 39607008",
        "Pneumonia": "SCT 233604007",
        "Pneumothorax": "SCT 36118008",
        "Consolidation": "SCT 95436008",
        "Edema": "SCT 19242006",
        "Emphysema": "SCT 87433001",
        "Fibrosis": "SCT 51615001",
    },
}
PRIVATE = {
    "chexpert-14": {
        "No Finding": "no-finding",
        "Enlarged Cardiomediastinum": "enlarged-cardiomediastinum",
        "Lung Lesion": "lung-lesion",
        "Pleural Other": "pleural-other",
        "Support Devices": "support-devices",
    },
    "nih-14": {"Pleural Thickening": "pleural-thickening", "Hernia": "hernia"},
}

_D = [[(i + j) % 5 if j < 5 else (i + j) % 5 + 5 for j in range(10)] for i in range(5)]
_D += [[(i - j) % 5 + 5 if j < 5 else (i - j) % 5 for j in range(10)] for i in range(5, 10)]
_P = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
for _ in range(6):
    _P.append([_P[-1][i] for i in _P[1]])


def is_snomed_number(value: str) -> bool:
    """The check digit of a SNOMED CT identifier (Verhoeff 1969), and the partition of concepts before it."""
    check = 0
    for i, digit in enumerate(reversed(value)):
        check = _D[check][_P[i % 8][int(digit)]]
    return check == 0 and value[-3:-1] in ("00", "10")


def test_the_check_digit_is_checked():
    assert is_snomed_number("73211009")
    assert not any(is_snomed_number(wrong) for wrong in ("73211008", "72311009", "73211019", "73210009"))


@pytest.mark.parametrize("space", STATED)
def test_every_field_has_the_code_that_is_known_for_it_or_a_private_one(space):
    found: dict[str, str] = {}
    for field in load_label_space(space).fields:
        code, site = finding_code(field, space)
        found[field] = f"{code.scheme_designator} {code.value}" + (f" in {site.value}" if site else "")
        if code.scheme_designator == "99VIVID":
            assert code.meaning == field
    private = {field: f"99VIVID {value}" for field, value in PRIVATE[space].items()}
    assert found == STATED[space] | private


def test_the_numbers_are_snomeds_and_the_meanings_the_standards():
    seen = set()
    for space in STATED:
        for field in STATED[space]:
            for code in finding_code(field, space):
                if code is None:
                    continue
                assert code.scheme_designator == "DCM" or is_snomed_number(code.value)
                entries = [
                    known[code.value] for known in concepts[code.scheme_designator].values() if code.value in known
                ]
                meanings = {meaning for meaning, _ in entries}
                if meanings:
                    assert code.meaning in meanings
                    seen.add(code.value)
    assert seen == {"112001", "112121", "19242006", "27925004", "36118008", "39607008", "4147007", "60046008"}


def test_fields_with_one_meaning_have_one_code():
    assert finding_code("Effusion", "nih-14") == finding_code("Pleural Effusion", "chexpert-12")


@pytest.mark.parametrize("space", [None, "my-own"])
def test_a_field_of_an_unknown_space_is_private_even_where_its_name_is_known(space):
    code, site = finding_code("pneumothorax", space)
    assert (code.value, code.scheme_designator, code.meaning) == ("pneumothorax", "99VIVID", "pneumothorax")
    assert site is None


@pytest.mark.parametrize("field", ["x" * 65, "a\\b"])
def test_a_field_that_dicom_cannot_name(field):
    with pytest.raises(VividError, match="cannot be a code meaning"):
        finding_code(field, None)
    assert finding_code("x" * 64, None)[0].meaning == "x" * 64
