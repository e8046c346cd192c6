"""Codes of findings."""

import pytest
from pydicom.sr._concepts_dict import concepts

from vivid_monai.deploy.codes import finding_code
from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import load_label_space

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
