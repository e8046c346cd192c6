"""Several rows about one image: boxes, findings, readers."""

import json

import pytest

from vivid_monai.errors import VividError
from vivid_monai.prepare import table
from vivid_monai.prepare.build import prepare

from .conftest import values

SPACE = {
    "label_space_version": "1.0",
    "name": "mine",
    "description": "d",
    "source": "s",
    "none_label": "nothing",
    "fields": [{"name": "Opacity"}, {"name": "Nodule", "parent": "Opacity"}, {"name": "Fracture"}],
}
LIST = {
    "mapping_version": "1.0",
    "dataset": "boxes",
    "source": "human",
    "image": {"template": "scans/{case}.png"},
    "patient": "case",
    "label_space": SPACE,
    "label_list": {"column": "what", "unlisted": "absent"},
    "reader": "who",
    "box": {"x_min": "x0", "y_min": "y0", "x_max": "x1", "y_max": "y1"},
}
HEAD = "case,what,who,x0,y0,x1,y1\n"
ROWS = (
    "a,Nodule,R1,1,2,11,22\n"
    "a,Fracture,R1,5,5,6,6\n"
    "a,Nodule,R2,3,2,13,22\n"
    "a,nothing,R3,,,,\n"
    "b,nothing,R1,,,,\n"
    "b,nothing,R2,,,,\n"
    "b,Opacity,R3,0,0,9,9\n"
    "c,Nodule,R1,1,1,2,2\n"
    "c,nothing,R2,,,,\n"
)


def read(tmp_path, text=HEAD + ROWS, drop=(), **changes):
    (tmp_path / "map.json").write_text(json.dumps({k: v for k, v in {**LIST, **changes}.items() if k not in drop}))
    (tmp_path / "t.csv").write_text(text)
    return table.read(tmp_path / "t.csv", mapping=tmp_path / "map.json", image_root=tmp_path)


def states(source, field):
    return values(source.rows.table[f"finding.{field}"])


def boxes(source):
    return [
        [(b["field"], b["x"], b["y"], b["width"], b["height"]) for b in one or ()]
        for one in values(source.rows.table["boxes"])
    ]


def test_any_row_makes_a_finding_present_and_all_boxes_stay(tmp_path):
    source = read(tmp_path, rows="any")
    assert values(source.rows.table["image"]) == ["scans/a.png", "scans/b.png", "scans/c.png"]
    assert states(source, "Nodule") == [1, 0, 1]
    assert states(source, "Opacity") == [1, 1, 1]  # above a nodule, and listed by itself
    assert states(source, "Fracture") == [1, 0, 0]
    assert boxes(source) == [
        [("Nodule", 1.0, 2.0, 10.0, 20.0), ("Fracture", 5.0, 5.0, 1.0, 1.0), ("Nodule", 3.0, 2.0, 10.0, 20.0)],
        [("Opacity", 0.0, 0.0, 9.0, 9.0)],
        [("Nodule", 1.0, 1.0, 1.0, 1.0)],
    ]
    assert "9 rows about 3 images or readings, merged by what any row says." in source.rows.notes


def test_the_majority_of_the_readers_decides_and_a_tie_is_uncertain(tmp_path):
    source = read(tmp_path, rows="majority")
    assert states(source, "Nodule") == [1, 0, 2]  # two of three; none; one of two
    assert states(source, "Fracture") == [0, 0, 0]
    assert states(source, "Opacity") == [1, 0, 2]
    assert [len(one) for one in boxes(source)] == [2, 0, 1]
    assert "2 boxes of findings that the majority calls absent are left out." in source.rows.notes
    # without a column of readers, every row is one's: R1's two rows of image a are two voices
    assert states(read(tmp_path, rows="majority", drop=("reader",)), "Nodule") == [2, 0, 2]


def test_each_readers_rows_are_kept_apart_and_his_patient_on_one_side(tmp_path):
    source = read(tmp_path, rows="each")
    ids = [f"scans/a.png#R{i}" for i in (1, 2, 3)] + [f"scans/b.png#R{i}" for i in (1, 2, 3)]
    assert values(source.rows.table["id"]) == [*ids, "scans/c.png#R1", "scans/c.png#R2"]
    assert states(source, "Nodule") == [1, 1, 0, 0, 0, 0, 1, 0]
    prepared = prepare(source, check="none", val=0.0, test=0.0)
    assert len(prepared.manifest) == 8
    assert prepared.card["skipped"] == {}
    assert prepared.manifest.table["reader"].to_pylist()[:3] == ["R1", "R2", "R3"]
    with pytest.raises(VividError, match="reader must name his column"):
        read(tmp_path, rows="each", drop=("reader",))


def test_rows_that_differ_in_a_fact_are_listed(tmp_path):
    text = "case,what,who,x0,y0,x1,y1,sex\na,Nodule,R1,1,1,2,2,F\na,Nodule,R2,1,1,2,2,M\nb,nothing,R1,,,,,F\n"
    source = read(tmp_path, text, rows="any", sex="sex")
    assert values(source.rows.table["image"]) == ["scans/b.png"]
    listed = source.rows.all_skipped()
    assert listed["reason"].tolist() == ["conflicting-duplicate"] * 2
    assert listed["detail"].tolist() == ["rows of this image differ in sex"] * 2


def test_a_long_table_without_a_word_on_merging_is_refused(tmp_path):
    with pytest.raises(VividError, match=r"3 of 3 images have several rows that differ .*Say in map\.json .*\"rows\""):
        read(tmp_path)
    # a slip in one of many images is no long table: its rows are skipped and listed
    wide = HEAD + "".join(f"n{i},nothing,R1,,,,\n" for i in range(40)) + "n0,Nodule,R1,,,,\n"
    prepared = prepare(read(tmp_path, wide), check="none", val=0.0, test=0.0)
    assert prepared.card["skipped"] == {"conflicting-duplicate": 2}


def test_half_a_box_is_an_error(tmp_path):
    with pytest.raises(VividError, match="row 2: its box has some of its sides only"):
        read(tmp_path, HEAD + "a,Nodule,R1,1,2,11,\n", rows="any")
    with pytest.raises(VividError, match="row 2: column 'x0' holds 'left', not a number of pixels"):
        read(tmp_path, HEAD + "a,Nodule,R1,left,2,11,12\n", rows="any")


def test_boxes_of_label_columns_are_those_that_a_row_calls_present(tmp_path):
    text = "patientId,x,y,width,height,Target\np,1,2,3,4,1\np,5,6,7,8,1\nq,,,,,0\n"
    source = read(
        tmp_path,
        text,
        drop=("label_list", "label_space", "reader"),
        image={"template": "{patientId}.dcm"},
        patient="patientId",
        label_columns={"Pneumonia": "Target"},
        values={"1": "present", "0": "absent"},
        box={side: side for side in ("x", "y", "width", "height")},
        rows="any",
    )
    assert states(source, "Pneumonia") == [1, 0]
    assert boxes(source) == [[("Pneumonia", 1.0, 2.0, 3.0, 4.0), ("Pneumonia", 5.0, 6.0, 7.0, 8.0)], []]
    record = next(r for r in prepare(source, check="none", val=0, test=0).manifest.records() if r.id == "p.dcm")
    assert [box.x for box in record.findings["Pneumonia"].boxes] == [1.0, 5.0]


def test_a_few_rows_of_a_second_reader_without_a_policy_are_conflicts(tmp_path):
    one_each = "".join(f"i{i},nothing,R1,,,,\n" for i in range(40))
    source = read(tmp_path, HEAD + one_each + "i7,nothing,R2,,,,\n")
    prepared = prepare(source, check="none", val=0.2, test=0.2)
    assert len(prepared.manifest) == 39
    assert values(prepared.skipped["row"]) == [9, 42]
    assert set(prepared.skipped["reason"]) == {"conflicting-duplicate"}
    assert prepared.skipped["detail"][0] == "rows 9, 42 of this image differ in reader"


def test_a_finding_of_one_reader_outweighs_the_no_finding_of_another(tmp_path):
    space = {**SPACE, "fields": [*SPACE["fields"], {"name": "No Finding"}, {"name": "Device"}]}
    space |= {"no_finding": {"field": "No Finding", "compatible": ["Device"]}}
    del space["none_label"]
    text = "a,No Finding,R1,,,,\na,Fracture,R2,5,5,6,6\nb,No Finding,R1,,,,\nb,Device,R2,1,1,2,2\nc,No Finding,R1,,,,\n"
    source = read(tmp_path, HEAD + text, label_space=space, rows="any")
    assert states(source, "No Finding") == [0, 1, 1]
    assert states(source, "Fracture") == [1, 0, 0]
    assert states(source, "Device") == [0, 1, 0]
    assert len(prepare(source, check="none").manifest) == 3
