"""The verifier tells every kind of violation, only violations, and survives any JSON."""

import copy
import csv
import functools
import json
import operator
import random
import re
from pathlib import Path

import pytest

from vivid_monai.ums.label_space import load_label_space, parse_label_space
from vivid_monai.ums.record import Record
from vivid_monai.ums.verify import (
    _boxes,
    _details,
    _measurements,
    _number,
    _sides,
    state_violations,
    verify,
)

CHEXPERT, ORGANS = load_label_space("chexpert-14"), load_label_space("organamnist-11")
EFFUSION, HEART = ("findings", "Pleural Effusion"), ("findings", "Cardiomegaly")

CASES = [
    # changes to the valid record, code, pointer, what the sentence must say
    ({("colour",): 1}, "schema", "/colour", "unknown key 'colour'"),
    ({("modality",): "XR"}, "enum", "/modality", "'XR' is not one of ['CR'"),
    ({("age",): float("nan")}, "number", "/age", "nan is not a finite number"),
    ({("age",): 414}, "range", "/age", "414 is greater than the maximum of 130"),
    ({(*HEART, "score"): 1.5}, "range", "/findings/Cardiomegaly/score", "1.5 is greater than the maximum of 1"),
    ({("label_space",): "chexpert-13"}, "label-space", "/label_space", "'chexpert-13' is not a label space"),
    (
        {("findings", "Effusion"): {"state": None}},
        "unknown-field",
        "/findings/Effusion",
        "called 'Pleural Effusion', not 'Effusion'",
    ),
    (
        {("findings", "Efusion/x"): {"state": None}},
        "unknown-field",
        "/findings/Efusion~1x",
        "label 'Efusion/x' is not in label space 'chexpert-14'",
    ),
    (
        {("findings", "Lung Opacity", "state"): "absent"},
        "hierarchy",
        "/findings/Pneumonia/state",
        "'Pneumonia' is present although 'Lung Opacity', of which it is a kind, is absent",
    ),
    (
        {("findings", "Edema"): {"state": None, "score": 0.5}},
        "null-detail",
        "/findings/Edema/score",
        "'Edema' is unanswerable (null) and so can have no 'score'",
    ),
    (
        {("findings", "Atelectasis", "severity"): "mild"},
        "absent-detail",
        "/findings/Atelectasis/severity",
        "'Atelectasis' is absent and so can have no 'severity'",
    ),
    (
        {(*HEART, "measurements", 0, "name"): "heart size"},
        "measurement",
        "/findings/Cardiomegaly/measurements/0/name",
        "'heart size' is not a known measurement",
    ),
    (
        {(*HEART, "measurements", 0, "unit"): "mm"},
        "unit",
        "/findings/Cardiomegaly/measurements/0/unit",
        "cardiothoracic_ratio is not measured in 'mm', but in 1 or %",
    ),
    (
        {(*HEART, "boxes", 0, "x"): 300},
        "box-outside",
        "/findings/Cardiomegaly/boxes/0/width",
        "the box ends at x = 480, the image at 390",
    ),
    (
        {(*HEART, "boxes", 0, "height"): 0},
        "box-area",
        "/findings/Cardiomegaly/boxes/0/height",
        "height 0 leaves the box without area",
    ),
    (
        {("image", "slices"): 3, (*HEART, "boxes", 0, "slice"): 3},
        "box-slice",
        "/findings/Cardiomegaly/boxes/0/slice",
        "slice 3 is not one of 3 slices",
    ),
    (
        {(*EFFUSION, "laterality"): "right"},
        "laterality",
        "/findings/Pleural Effusion/laterality",
        "the location 'left costophrenic angle' is left, the laterality right",
    ),
]
NO_FINDING = {
    ("label_space",): "nih-shared",
    ("findings",): {"No Finding": {"state": "present"}, "Edema": {"state": "present"}},
}
EXCLUSIVE = {("label_space",): "organamnist-11", ("findings",): {o: {"state": "present"} for o in ("liver", "spleen")}}
RATING = {
    ("label_space",): "lidc-malignancy",
    ("findings",): {
        "Malignancy": {"state": "absent", "measurements": [{"name": "rating", "value": 3, "unit": "1"}]},
    },
}
CASES += [
    (NO_FINDING, "no-finding", "/findings/Edema/state", "although 'No Finding' is present too"),
    (EXCLUSIVE, "exclusive", "/findings/spleen/state", "'spleen' and 'liver' are both present"),
    (RATING, "rating", "/findings/Malignancy/measurements/0/value", "makes 'Malignancy' uncertain, not absent"),
]


def test_the_valid_record_is_valid_as_json_and_as_record(valid):
    assert verify(valid) == []
    assert verify(Record.from_dict(valid), load_label_space("chexpert-14")) == []


@pytest.mark.parametrize(("changes", "code", "pointer", "words"), CASES, ids=[c[2] + " " + c[1] for c in CASES])
def test_one_mistake_is_one_violation(broken, changes, code, pointer, words):
    (violation,) = verify(broken(changes))
    assert (violation.code, violation.pointer) == (code, pointer)
    assert words in violation.message


def test_the_page_lists_exactly_the_codes():
    page = (Path(__file__).parents[2] / "docs" / "ums.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z-]+)` \|", page.split("## Violations")[1].split("\n## ")[0], flags=re.MULTILINE)
    assert sorted(listed) == sorted({code for _, code, _, _ in CASES})


def test_all_mistakes_of_a_record_are_told_together(broken):
    changes = {
        ("colour",): 1,
        ("age",): 414,
        ("findings", "Lung Opacity", "state"): "absent",
        ("findings", "Edema"): {"state": None, "score": 2},
        (*HEART, "boxes", 0, "x"): 300,
        (*EFFUSION, "laterality"): "right",
    }
    assert [(v.pointer, v.code) for v in verify(broken(changes))] == [
        ("/age", "range"),
        ("/colour", "schema"),
        ("/findings/Cardiomegaly/boxes/0/width", "box-outside"),
        ("/findings/Edema/score", "null-detail"),
        ("/findings/Edema/score", "range"),
        ("/findings/Pleural Effusion/laterality", "laterality"),
        ("/findings/Pneumonia/state", "hierarchy"),
    ]


def test_a_record_without_label_space_is_checked_for_the_rest(broken):
    record = broken({("findings", "Lung Opacity", "state"): "absent", (*EFFUSION, "laterality"): "right"})
    del record["label_space"]
    assert [v.code for v in verify(record)] == ["laterality"]
    given = load_label_space("chexpert-14")
    assert [v.code for v in verify(record, given)] == ["laterality", "hierarchy"]


def test_the_given_label_space_must_be_the_records_own(valid):
    (violation,) = [v for v in verify(valid, load_label_space("chexpert-12")) if v.code == "label-space"]
    assert violation.message == "the record says 'chexpert-14', but is checked against 'chexpert-12'"


def test_a_label_space_of_ones_own_is_given_by_hand(broken):
    text = {"name": "own", "label_space_version": "1.0", "description": "d", "source": "s", "fields": [{"name": "a"}]}
    record = broken({("findings",): {"a": {"state": "present"}}, ("label_space",): "own"})
    assert verify(record, parse_label_space(json.dumps(text))) == []
    assert verify(record, space=parse_label_space(json.dumps(text))) == []
    assert [v.code for v in verify(record)] == ["label-space"]


def test_a_record_cannot_make_the_verifier_open_a_file(valid, tmp_path):
    path = tmp_path / "own.json"
    path.write_text("{")
    (violation,) = verify(valid | {"label_space": str(path)})
    assert violation.code == "label-space"


ODD_VALUES = [
    *(None, True, -1, 0, 3, 0.5, 1e308, float("nan"), float("inf"), 10**400, "", "left", "present", "\ud800\n/~"),
    *([], {}, [None], [[]], {"state": {}}, {"state": []}, [{}], [{"x": "1", "width": None}]),
]


def places(value, path=()):
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def test_any_json_is_told_never_raised(valid):
    rng = random.Random(0)
    for _ in range(400):
        record = copy.deepcopy(valid)
        for _ in range(rng.randint(1, 3)):
            *path, last = rng.choice([place for place in places(record) if place])
            functools.reduce(operator.getitem, path, record)[last] = copy.deepcopy(rng.choice(ODD_VALUES))
        for violation in verify(record):
            assert violation.code
            assert violation.message.isprintable()
            assert violation.pointer == "" or violation.pointer.startswith("/")


# Contradictions between findings, and the details that states and units allow.


def states(**given):
    return {name.replace("_", " "): {"state": state} for name, state in given.items()}


def codes(answers, space=CHEXPERT):
    return sorted(
        (v.code, v.pointer)
        for v in state_violations({name: answer["state"] for name, answer in answers.items()}, space)
    )


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
    assert codes({"liver": {"state": "present"}, "spleen": {"state": "absent"}}, ORGANS) == []
    assert codes({name: {"state": "present"} for name in ("spleen", "liver", "heart")}, ORGANS) == [
        ("exclusive", "/findings/liver/state"),
        ("exclusive", "/findings/spleen/state"),
    ]


def detail_codes(finding, name="Edema", space=CHEXPERT):
    found = (*_details(name, finding), *_measurements(name, finding, space))
    return sorted((code, "/".join(map(str, path))) for path, code, _ in found)


def test_null_carries_nothing_and_absent_neither_severity_nor_boxes():
    everything = {"severity": "mild", "location": "base", "laterality": "left", "score": 0.5, "boxes": [{}]}
    assert detail_codes({"state": None, **everything}) == [("null-detail", part) for part in sorted(everything)]
    assert detail_codes({"state": "absent", **everything}) == [
        ("absent-detail", "boxes"),
        ("absent-detail", "severity"),
    ]
    assert detail_codes({"state": "present", **everything}) == []
    assert detail_codes({"state": "uncertain", **everything}) == []
    assert detail_codes({"state": None}) == []


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
        return detail_codes({"state": "present", "measurements": [{"name": name, "value": value, "unit": unit}]})

    assert [of(value) for value in good] == [[]] * len(good)
    assert [of(value) for value in bad] == [[("range", "measurements/0/value")]] * len(bad)


def test_units_belong_to_their_kind():
    items = [
        {"name": n, "value": 1, "unit": u} for n, u in [("diameter", "m"), ("width of heart", "mm"), ("area", "mm2")]
    ]
    assert detail_codes({"state": "present", "measurements": items}) == [
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
    assert detail_codes(finding, "Malignancy", load_label_space("lidc-malignancy")) == expected


def test_numbers_are_finite_json_numbers():
    assert [_number(v) for v in (1, 2.5, True, None, "1", float("nan"), float("inf"), 10**400)] == [1, 2.5] + [None] * 6


# Boxes against the image, sides against each other.


SIZE = {"path": "a.png", "height": 100, "width": 200}


def box(x, y, width, height, info=SIZE, **rest):
    finding = {"boxes": [{"x": x, "y": y, "width": width, "height": height, **rest}]}
    return sorted((code, path[-1]) for path, code, _ in _boxes(finding, info))


@pytest.mark.parametrize("inside", [(0, 0, 200, 100), (199, 99, 1, 1), (0.5, 0.25, 10.5, 3), (0, 0, 200.0005, 100)])
def test_boxes_up_to_the_edge_are_inside(inside):
    assert box(*inside) == []


@pytest.mark.parametrize(
    ("outside", "expected"),
    [
        ((-1, 0, 5, 5), [("box-outside", "x")]),
        ((0, -0.5, 5, 5), [("box-outside", "y")]),
        ((0, 0, 201, 100), [("box-outside", "width")]),
        ((150, 50, 51, 51), [("box-outside", "height"), ("box-outside", "width")]),
        ((0, 99, 5, 1.01), [("box-outside", "height")]),
        ((5, 5, 0, 5), [("box-area", "width")]),
        ((5, 5, -2, -2), [("box-area", "height"), ("box-area", "width")]),
        ((201, 5, -2, 5), [("box-area", "width"), ("box-outside", "width")]),
        ((0, 0, 100, 200), [("box-outside", "height")]),
    ],
)
def test_boxes_outside_or_without_area_are_told_at_the_number(outside, expected):
    assert box(*outside) == expected


def test_without_the_images_size_only_the_origin_and_the_area_can_be_wrong():
    assert box(5000, 0, 5, 5, info={"path": "a.png"}) == []
    assert box(-5000, 0, 0, 5, info={"path": "a.png"}) == [("box-area", "width"), ("box-outside", "x")]


def test_slices_belong_to_the_volume_and_to_the_record():
    volume = SIZE | {"slices": 10, "slice": 4}
    assert box(0, 0, 5, 5, info=volume, slice=4) == []
    assert box(0, 0, 5, 5, info=volume) == []
    assert box(0, 0, 5, 5, info=volume, slice=5) == [("box-slice", "slice")]
    assert box(0, 0, 5, 5, info=SIZE | {"slices": 10}, slice=10) == [("box-slice", "slice")]


def test_the_slice_of_a_record_belongs_to_its_volume(broken):
    assert verify(broken({("image", "slices"): 10, ("image", "slice"): 9})) == []
    (violation,) = verify(broken({("image", "slice"): 10}))
    assert (violation.pointer, violation.code) == ("/image/slice", "box-slice")


def test_boxes_of_a_volume_are_inside_it():
    volume = SIZE | {"slices": 10}
    assert box(0, 0, 5, 5, info=volume, z=0, depth=10) == []
    assert box(0, 0, 5, 5, info=volume, z=2.5, depth=7.5) == []
    assert box(0, 0, 5, 5, info=volume, z=-1, depth=5) == [("box-outside", "z")]
    assert box(0, 0, 5, 5, info=volume, z=6, depth=5) == [("box-outside", "depth")]
    assert box(0, 0, 5, 5, info=volume, z=6, depth=0) == [("box-area", "depth")]
    assert box(0, 0, 5, 5, info=volume, z=1, depth=2, slice=1) == [("box-slice", "slice")]


def side(name, space=CHEXPERT, view="PA", **finding):
    return [path[-1] for path, _, _ in _sides(name, {"state": "present", **finding}, space, view)]


@pytest.mark.parametrize(
    ("location", "laterality", "wrong"),
    [
        ("left lower lobe", "left", False),
        ("left lower lobe", "right", True),
        ("left lower lobe", "bilateral", True),
        ("left lower lobe", "midline", True),
        ("both lower lobes", "bilateral", False),
        ("right and left base", "right", True),
        ("lower lobe", "right", False),
        ("LEFT hilum", None, False),
    ],
)
def test_the_location_agrees_with_the_laterality(location, laterality, wrong):
    given = {"location": location} | ({"laterality": laterality} if laterality else {})
    assert side("Pleural Effusion", **given) == (["laterality"] if wrong else [])


@pytest.mark.parametrize("view", ["lateral", "LL", "RL"])
def test_a_lateral_view_shows_no_side(view):
    assert [side("Edema", view=view, laterality=word) for word in ("left", "right", "bilateral")] == [
        ["laterality"]
    ] * 3
    assert side("Cardiomegaly", view=view, laterality="midline") == []
    assert side("Edema", view=view, location="left base") == []


@pytest.mark.parametrize("view", ["PA", "AP", "frontal", "axial", None])
def test_other_views_show_sides(view):
    assert side("Edema", view=view, laterality="left") == []


def test_a_midline_structure_has_no_side():
    assert [side("Cardiomegaly", laterality=w) for w in ("left", "right", "bilateral")] == [["laterality"]] * 3
    assert side("Cardiomegaly", laterality="midline", location="apex") == []
    assert side("Cardiomegaly", location="left ventricle") == []


def test_a_field_with_a_side_keeps_it():
    assert side("kidney-left", ORGANS, laterality="left", location="left upper pole") == []
    assert side("kidney-left", ORGANS, laterality="right") == ["laterality"]
    assert side("kidney-left", ORGANS, location="right upper pole") == ["location"]
    assert side("liver", ORGANS, location="left lobe", laterality="left") == []
    assert side("Left kidney cyst", None, laterality="right") == ["laterality"], "without a label space, by its name"


def test_a_long_name_does_not_make_a_long_message(valid):
    valid["findings"]["x" * 5000] = {"state": None, "y" * 5000: 1}
    lengths = [len(one.message) for one in verify(valid)]
    assert len(lengths) == 3
    assert max(lengths) == 300


@pytest.mark.real_data
def test_the_boxes_of_nih_are_inside(real_data):
    with (real_data / "nih" / "BBox_List_2017.csv").open(newline="", encoding="utf-8") as file:
        rows = [[float(row[key]) for key in ("x", "y", "w", "h")] for row in csv.DictReader(file)]
    assert len(rows) > 20
    assert [box(*row, info={"height": 1024, "width": 1024}) for row in rows] == [[]] * len(rows)
