"""Which files are looked at, and which of them are not answered by their tags."""

import os

import pytest

from tests.deploy.made_dicom import dicom
from vivid_monai.deploy.inputs import find_inputs, objection
from vivid_monai.errors import VividError


def test_finds_every_file_once_in_order(tmp_path):
    for name in ("b/2.png", "b/1.dcm", "a.txt", ".hidden", "b/.git/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_inputs([tmp_path / "b" / "2.png", tmp_path])
    assert [os.path.relpath(one.path, tmp_path) for one in found] == ["b/2.png", "a.txt", "b/1.dcm"]
    assert [one.size for one in found] == [7, 5, 7]
    assert find_inputs([tmp_path / ".hidden"])[0].size == 7


def test_a_changed_file_is_another_input(tmp_path):
    file = tmp_path / "a.png"
    file.write_text("a")
    before = find_inputs([file])
    os.utime(file, ns=(1, 1))
    assert find_inputs([file]) != before


def test_nothing_to_answer_is_an_error(tmp_path):
    with pytest.raises(VividError, match="no file"):
        find_inputs([tmp_path])
    with pytest.raises(VividError, match="nowhere: there is no such file or folder"):
        find_inputs([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({}, None),
        ({"ViewPosition": "PA"}, None),
        ({"ViewPosition": "AP", "BodyPartExamined": "Chest"}, None),
        ({"ViewPosition": "LLD"}, None),
        ({"ViewPosition": "", "PatientOrientation": ["L", "F"]}, None),
        ({"ViewPosition": "PA", "PatientOrientation": ["A", "F"]}, None),
        ({"ViewPosition": "LL"}, "lateral"),
        ({"ViewPosition": "LATERAL"}, "lateral"),
        ({"PatientOrientation": ["A", "F"]}, "lateral"),
        ({"PatientOrientation": ["PH", "F"]}, "lateral"),
        ({"ViewPosition": "RLO"}, "oblique"),
        ({"Modality": "CT"}, "modality is CT"),
        ({"Modality": "CR", "BodyPartExamined": "ABDOMEN"}, "not a chest"),
    ],
)
def test_tags_speak_against_what_was_not_trained_on(tmp_path, tags, told):
    path = dicom(tmp_path / "a.dcm", **tags)
    said = objection(path, ["AP", "PA"])
    assert said is None if told is None else told in said


def test_laterals_are_answered_by_a_model_that_knows_them(tmp_path):
    path = dicom(tmp_path / "a.dcm", ViewPosition="LL")
    assert objection(path, ["PA", "lateral"]) is None
    assert "lateral" in objection(path, [])


def test_no_free_text_of_a_tag_is_repeated(tmp_path):
    path = dicom(tmp_path / "a.dcm", Modality="DOE JANE")
    assert "DOE" not in objection(path, [])
    path = dicom(tmp_path / "b.dcm", BodyPartExamined="DOE JANE 1970")
    assert "DOE" not in objection(path, [])


def test_what_is_no_dicom_has_no_tags(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG and so on")
    assert objection(str(tmp_path / "a.png"), []) is None
