"""The mapping file: what it means, and what cannot be meant."""

import json
from pathlib import Path

import pytest

from vivid_monai.errors import VividError
from vivid_monai.prepare.table import TableMapping, load_mapping

MAPPING = {
    "mapping_version": "1.0",
    "dataset": "my-hospital",
    "source": "human",
    "image": "file",
    "patient": "mrn",
    "label_space": "chexpert-14",
    "label_columns": {"Pulmonary Edema": "oedema", "Fracture": "fx"},
    "values": {"1": "present", "0": "absent", "?": "uncertain", "": None},
}


def load(tmp_path: Path, drop: tuple[str, ...], changes: dict) -> TableMapping:
    plan = {key: value for key, value in {**MAPPING, **changes}.items() if key not in drop}
    (tmp_path / "map.json").write_text(json.dumps(plan))
    return load_mapping(tmp_path / "map.json")


def test_labels_are_resolved_and_columns_listed(tmp_path):
    plan = load(tmp_path, (), {"view": {"column": "v", "values": {"x": "PA"}}, "sex": "s"})
    assert {field: one["column"] for field, one in plan.label_columns.items()} == {"Edema": "oedema", "Fracture": "fx"}
    assert plan.columns == {"image": "file", "patient": "mrn", "view": "v", "sex": "s"}
    assert plan.data["view"]["values"] == {"x": "PA"}
    assert plan.data["sex"]["values"]["Female"] == "F"


def test_a_label_space_file_is_looked_for_beside_the_mapping(tmp_path):
    space = {
        "label_space_version": "1.0",
        "name": "mine",
        "description": "d",
        "source": "s",
        "fields": [{"name": "Fracture"}],
    }
    (tmp_path / "space.json").write_text(json.dumps(space))
    plan = load(tmp_path, (), {"label_space": "space.json", "label_columns": {"Fracture": "fx"}})
    assert plan.space.fields == ("Fracture",)
    assert load(tmp_path, (), {"label_space": space, "label_columns": {"Fracture": "fx"}}).space.name == "mine"


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({}, ("patient",), "'patient' is a required property"),
        ({"pateint": "mrn"}, (), "unknown key 'pateint', did you mean 'patient'"),
        (
            {"label_columns": {"Oedemma": "oedema"}},
            (),
            "label 'Oedemma' is not in label space 'chexpert-14'; did you mean 'Edema'",
        ),
        ({"label_columns": {"Edema": "oedema", "Pulmonary Edema": "fx"}}, (), "gives 'Edema' two columns"),
        ({"label_space": "chexpert-15"}, (), "no label space 'chexpert-15'"),
        ({"values": {"1": "yes"}}, (), "at values/1: 'yes' is not one of"),
        ({}, ("values",), "label_columns needs values.* 'Pulmonary Edema' has none"),
        (
            {"label_columns": {"Edema": {"column": "oedema", "values": {"1": "present"}}}},
            (),
            "values is for the label_columns that have none of their own",
        ),
        ({"label_columns": {"Edema": {"column": "oedema"}}}, ("values",), "at label_columns/Edema: "),
        ({}, ("label_columns", "values"), "either label_columns .* or label_list"),
        ({"split": {"column": "mrn", "values": {"p1": "dev"}}}, (), "split word 'dev'"),
        (
            {"label_list": {"column": "fx", "unlisted": "absent"}},
            ("label_columns", "values", "label_space"),
            "needs a label_space",
        ),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_an_error_that_names_the_key(tmp_path, changes, drop, message):
    with pytest.raises(VividError, match=message) as caught:
        load(tmp_path, drop, changes)
    assert "map.json" in str(caught.value)


def test_a_file_that_is_no_mapping_is_an_error(tmp_path):
    (tmp_path / "map.json").write_text("{")
    with pytest.raises(VividError, match=r"map\.json: not JSON"):
        load_mapping(tmp_path / "map.json")
    with pytest.raises(VividError, match=r"none\.json: the mapping file cannot be read"):
        load_mapping(tmp_path / "none.json")
