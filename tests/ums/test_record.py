"""Records round-trip and refuse what is no record."""

import json

import numpy as np
import pytest

from vivid_monai.errors import VividError
from vivid_monai.ums.record import Box, Finding, ImageInfo, Measurement, Provenance, Record


def full_record() -> Record:
    """A record in which every part of every class is given."""
    finding = Finding(
        "present", "mild", "left base", "left", 0.25, (Box(1, 2.5, 3, 4, 7),), (Measurement("diameter", 12, "mm"),)
    )
    return Record(
        id="1",
        patient_id="p",
        image=ImageInfo("a.nii.gz", 512, 256, slices=40, slice=7),
        modality="CT",
        anatomy="chest",
        view="axial",
        findings={"b": finding, "a": Finding(None)},
        provenance=Provenance("set", "group", "2", "human", "r.txt", "reader 3"),
        study_id="s",
        report="text “quoted”\n",
        label_space="mine",
        sex="O",
        age=3.5,
    )


def test_every_part_round_trips():
    record = full_record()
    assert Record.from_dict(record.to_dict()) == record
    assert Record.from_json(record.to_json()) == record
    assert list(Record.from_json(record.to_json()).findings) == ["b", "a"], "the order of findings is kept"


def test_only_records_with_boxes_in_three_dimensions_are_of_version_1_1(broken):
    flat = {"x": 1, "y": 2, "width": 3, "height": 4}
    spatial = flat | {"z": 0.5, "depth": 6}
    record = Record.from_dict(broken({("findings", "Edema", "boxes"): [flat]}))
    assert record.to_dict()["ums_version"] == "1.0"
    record = Record.from_dict(broken({("findings", "Edema", "boxes"): [flat, spatial], ("ums_version",): "1.1"}))
    assert record.findings["Edema"].boxes == (Box(1, 2, 3, 4), Box(1, 2, 3, 4, z=0.5, depth=6))
    assert Record.from_dict(record.to_dict()) == record
    assert (record.to_dict()["ums_version"], record.to_dict()["findings"]["Edema"]["boxes"][1]) == ("1.1", spatial)
    with pytest.raises(VividError, match="'depth' is a dependency of 'z'"):
        Record.from_dict(broken({("findings", "Edema", "boxes"): [flat | {"z": 1}]}))


def test_json_round_trips_exactly(valid):
    assert Record.from_dict(valid).to_dict() == valid
    text = Record.from_dict(valid).to_json()
    assert json.loads(text) == valid
    assert Record.from_json(text).to_json() == text
    assert "\n" not in text


def test_minimal_record_leaves_out_what_is_unknown_but_view():
    record = Record("1", "p", ImageInfo("a.png"), "DX", "chest", None, {}, Provenance("d", "l", None, "report"))
    assert record.to_dict() == {
        "ums_version": "1.0",
        "id": "1",
        "patient_id": "p",
        "image": {"path": "a.png"},
        "modality": "DX",
        "anatomy": "chest",
        "view": None,
        "findings": {},
        "provenance": {"dataset": "d", "labeller": "l", "source": "report"},
    }
    assert Record.from_dict(record.to_dict()) == record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("findings", "Edema", "state"), "yes", r"at /findings/Edema/state: 'yes' is not one of .*'present'"),
        (("ums_version",), "2.0", "at /ums_version: '2.0' is not one of"),
        (("colour",), 1, "at /colour: unknown key 'colour'"),
        (("age",), float("nan"), "at /age: nan is not a finite number"),
    ],
)
def test_what_is_no_record_is_refused_with_its_place(broken, path, value, message):
    with pytest.raises(VividError, match=message):
        Record.from_dict(broken({path: value}))


def test_the_number_of_further_violations_is_told(broken):
    with pytest.raises(VividError, match="2 more: see `vivid verify`"):
        Record.from_dict(broken({("age",): -1, ("sex",): "x", ("modality",): "XR"}))


def test_json_with_a_key_twice_is_refused():
    with pytest.raises(VividError, match="'state' stands twice"):
        Record.from_json('{"findings": {"Edema": {"state": "absent", "state": "present"}}}')


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.array([0.5])])
def test_what_json_cannot_hold_is_not_written(number):
    record = Record.from_dict(full_record().to_dict() | {"findings": {}})
    object.__setattr__(record, "age", number)
    with pytest.raises(VividError, match="record '1' holds what JSON cannot hold"):
        record.to_json()
