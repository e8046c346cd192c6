"""The verifier tells every kind of violation, only violations, and survives any JSON."""

import copy
import functools
import operator
import random
import re
import time
import timeit
from pathlib import Path

import pytest

from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.record import Record
from vivid_monai.ums.verify import verify

EFFUSION, HEART = ("findings", "Pleural Effusion"), ("findings", "Cardiomegaly")

CASES = [
    # changes to the valid record, code, pointer, what the sentence must say
    ({("colour",): 1}, "schema", "/colour", "unknown key 'colour'"),
    ({("modality",): "XR"}, "enum", "/modality", "'XR' is not one of \"CR\""),
    ({("age",): float("nan")}, "number", "/age", "nan is not a finite number"),
    ({("age",): 414}, "range", "/age", "414 is above 130"),
    ({(*HEART, "score"): 1.5}, "range", "/findings/Cardiomegaly/score", "1.5 is above 1"),
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


def test_a_record_of_fourteen_findings_takes_about_a_millisecond(valid):
    record = Record.from_dict(valid)
    verify(record)
    best = min(timeit.repeat(lambda: verify(record), timer=time.process_time, number=20, repeat=5)) / 20
    assert best < 0.004, "0.7 ms of processor time as measured; the rest is room for slow machines"
