"""Contradictions between findings, and the details that states and units allow."""

import json

import pytest

from vivid_monai.ums.label_space import load_label_space, parse_label_space
from vivid_monai.ums.verify import details, number, sets

CHEXPERT = load_label_space("chexpert-14")


def states(**given):
    return {name.replace("_", " "): {"state": state} for name, state in given.items()}


def codes(answers, space=CHEXPERT):
    return sorted((v.code, v.pointer) for v in sets(answers, space))


@pytest.mark.parametrize(("child", "parent"), CHEXPERT.parents.items())
def test_only_a_present_child_under_an_absent_parent_is_a_violation(child, parent):
    wrong = [("hierarchy", f"/findings/{child}/state")]
    for child_state in ("present", "absent", "uncertain", None):
        for parent_state in ("present", "absent", "uncertain", None):
            answers = {child: {"state": child_state}, parent: {"state": parent_state}}
            expected = wrong if (child_state, parent_state) == ("present", "absent") else []
            assert codes(answers) == expected
    assert codes({child: {"state": "present"}}) == []


def test_a_present_grandchild_is_held_against_every_ancestor():
    chain = {"name": "own", "label_space_version": "1.0", "description": "d", "source": "s"}
    chain["fields"] = [{"name": "a"}, {"name": "b", "parent": "a"}, {"name": "c", "parent": "b"}]
    space = parse_label_space(json.dumps(chain))
    assert codes(states(a="absent", c="present"), space) == [("hierarchy", "/findings/c/state")]
    assert len(codes(states(a="absent", b="absent", c="present"), space)) == 2


def test_no_finding_stands_only_beside_support_devices():
    assert codes(states(No_Finding="present", Support_Devices="present")) == []
    assert codes(states(No_Finding="present", Edema="uncertain", Fracture="absent", Pneumonia=None)) == []
    assert codes(states(No_Finding="absent", Fracture="present")) == []
    both = codes(states(No_Finding="present", Fracture="present", Pleural_Other="present"))
    assert both == [("no-finding", "/findings/Fracture/state"), ("no-finding", "/findings/Pleural Other/state")]


def test_exclusive_fields_allow_one_present():
    organs = load_label_space("organamnist-11")
    assert codes({"liver": {"state": "present"}, "spleen": {"state": "absent"}}, organs) == []
    assert codes({name: {"state": "present"} for name in ("spleen", "liver", "heart")}, organs) == [
        ("exclusive", "/findings/liver/state"),
        ("exclusive", "/findings/spleen/state"),
    ]


def told(finding, name="Edema", space=CHEXPERT):
    return sorted((v.code, v.pointer.removeprefix(f"/findings/{name}/")) for v in details(name, finding, space))


def test_null_carries_nothing_and_absent_neither_severity_nor_boxes():
    everything = {"severity": "mild", "location": "base", "laterality": "left", "score": 0.5, "boxes": [{}]}
    assert told({"state": None, **everything}) == [("null-detail", part) for part in sorted(everything)]
    assert told({"state": "absent", **everything}) == [("absent-detail", "boxes"), ("absent-detail", "severity")]
    assert told({"state": "present", **everything}) == []
    assert told({"state": "uncertain", **everything}) == []
    assert told({"state": None}) == []


@pytest.mark.parametrize(
    ("name", "unit", "good", "bad"),
    [
        ("diameter", "mm", [0.1, 2000], [0, -1, 2001]),
        ("diameter", "cm", [0.01, 200], [0, 201]),
        ("volume", "mL", [0.1], [0]),
        ("attenuation", "HU", [-1100, 0, 3071], [-1101, 40000]),
        ("angle", "deg", [0, 360], [-1, 361]),
        ("cardiothoracic_ratio", "1", [0.01, 0.5, 1], [0, 1.01]),
        ("cardiothoracic_ratio", "%", [50, 100], [0, 101]),
        ("ejection_fraction", "%", [0, 55, 100], [-1, 101]),
    ],
)
def test_measurements_have_ranges_in_their_unit(name, unit, good, bad):
    def of(value):
        return told({"state": "present", "measurements": [{"name": name, "value": value, "unit": unit}]})

    assert [of(value) for value in good] == [[]] * len(good)
    assert [of(value) for value in bad] == [[("range", "measurements/0/value")]] * len(bad)


def test_units_belong_to_their_kind():
    items = [
        {"name": n, "value": 1, "unit": u} for n, u in [("diameter", "m"), ("width of heart", "mm"), ("area", "mm2")]
    ]
    assert told({"state": "present", "measurements": items}) == [
        ("measurement", "measurements/1/name"),
        ("unit", "measurements/0/unit"),
    ]


@pytest.mark.parametrize(
    ("state", "value", "code"),
    [
        ("absent", 2, None),
        ("present", 4, None),
        ("uncertain", 3, None),
        ("present", 3, "rating"),
        ("absent", 4.5, "rating"),
        ("maybe", 3, None),
        ("absent", 0.5, "range"),
        ("present", 6, "range"),
    ],
)
def test_ratings_agree_with_state_and_scale(state, value, code):
    finding = {"state": state, "measurements": [{"name": "rating", "value": value, "unit": "1"}]}
    expected = [(code, "measurements/0/value")] if code else []
    assert told(finding, "Malignancy", load_label_space("lidc-malignancy")) == expected


def test_numbers_are_finite_json_numbers():
    assert [number(v) for v in (1, 2.5, True, None, "1", float("nan"), float("inf"), 10**400)] == [1, 2.5] + [None] * 6
