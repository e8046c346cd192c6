"""The schemas are sound and their violations say where and what, whatever the JSON."""

import json

import pytest
from jsonschema import Draft202012Validator

from vivid_monai.errors import VividError
from vivid_monai.ums.schema import (
    SCHEMA_FILES,
    UMS_VERSION,
    Violation,
    parse_json,
    pointer,
    schema_violations,
)


@pytest.mark.parametrize("name", ["ums-1.1.schema.json", "label-space-1.0.schema.json"])
def test_schemas_are_valid_2020_12(name):
    schema = json.loads((SCHEMA_FILES / name).read_text(encoding="utf-8"))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)


def test_the_schemas_version_is_the_records():
    schema = json.loads((SCHEMA_FILES / f"ums-{UMS_VERSION}.schema.json").read_text(encoding="utf-8"))
    assert schema["properties"]["ums_version"]["enum"][-1] == UMS_VERSION
    assert schema["$id"].endswith(f":{UMS_VERSION}")


def test_every_kind_of_measurement_has_units_with_known_bounds():
    kinds = json.loads((SCHEMA_FILES / "measurements.json").read_text(encoding="utf-8"))
    assert kinds["cardiothoracic_ratio"]["1"] == {"above": 0, "at_most": 1}
    for units in kinds.values():
        assert units
        for bounds in units.values():
            assert bounds.keys() <= {"above", "at_least", "at_most"}
            assert not {"above", "at_least"} <= bounds.keys()


def test_pointers_escape_as_in_rfc_6901():
    assert pointer() == ""
    assert pointer("a/b", "m~n", "~1", 0) == "/a~1b/m~0n/~01/0"


def test_every_violation_is_told_not_only_the_first(broken):
    record = broken(
        {
            ("findings", "a/b~", "state"): "yes",
            ("findings", "a/b~", "colour"): 1,
            ("findings", "a/b~", "tint"): 1,
            ("findings", "Edema"): {},
            ("age",): 131,
            ("image", "height"): True,
            ("image", "path"): "",
            ("sex",): float("inf"),
        }
    )
    del record["id"], record["modality"]
    assert [(v.pointer, v.code) for v in schema_violations(record)] == [
        ("", "schema"),
        ("", "schema"),
        ("/age", "range"),
        ("/findings/Edema", "schema"),
        ("/findings/a~1b~0/colour", "schema"),
        ("/findings/a~1b~0/state", "enum"),
        ("/findings/a~1b~0/tint", "schema"),
        ("/image/height", "schema"),
        ("/image/path", "schema"),
        ("/sex", "number"),
    ]
    messages = {v.message for v in schema_violations(record)}
    assert {f"{key!r} is a required property" for key in ("id", "modality", "state")} <= messages
    assert {"131 is greater than the maximum of 130", "True is not of type 'integer'"} <= messages


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), 10**400])
def test_numbers_that_are_not_finite_are_told_wherever_they_stand(broken, number):
    record = broken({("findings", "Edema", "boxes"): [{"x": 1, "y": number, "width": 1, "height": 1}]})
    (violation,) = schema_violations(record)
    assert (violation.pointer, violation.code) == ("/findings/Edema/boxes/0/y", "number")
    assert len(violation.message) < 100, "long numbers are cut"


@pytest.mark.parametrize("data", [None, [], "text", 3, True])
def test_json_that_is_no_object_is_one_violation(data):
    (violation,) = schema_violations(data)
    assert violation == Violation("", "schema", violation.message)
    assert violation.message.endswith("is not of type 'object'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "here: key 'c' stands twice in one object"),
        ('{"a": 1', "here: not JSON"),
        ("[" * 100_000, "here: not JSON of ours: nested too deeply"),
        ("1" * 5000, "here: not JSON"),
        ('{"a": "\\ud800"}', "here: holds half of a surrogate pair"),
    ],
)
def test_broken_json_is_one_clear_error(text, message):
    with pytest.raises(VividError, match=message):
        parse_json(text, where="here")


def test_a_value_by_itself_is_judged_as_in_its_record():
    assert schema_violations(5, ("age",)) == []
    assert [(v.pointer, v.code) for v in schema_violations(131, ("age",))] == [("/age", "range")]
    assert [(v.pointer, v.code) for v in schema_violations(0, ("image", "height"))] == [("/image/height", "range")]
    assert [v.code for v in schema_violations(float("nan"), ("age",))] == ["number"]


def test_long_values_are_cut(broken):
    (violation,) = schema_violations(broken({("sex",): "x" * 500}))
    assert len(violation.message) < 120


def test_deeply_nested_json_is_one_violation():
    data: list = []
    for _ in range(5000):
        data = [data]
    assert schema_violations({"ums_version": data}) == [Violation("", "schema", "nested too deeply")]
