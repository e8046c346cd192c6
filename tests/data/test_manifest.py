"""The manifest: what goes in comes out, and what is wrong does not get in."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vivid_monai.data.columns import conform, manifest_schema, open_label_space, row_of, stored_label_space
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SplitError, SplitRule
from vivid_monai.errors import VividError
from vivid_monai.ums.record import Box, Finding, ImageInfo, Measurement, Provenance, Record

FULL = Record(
    id="a",
    patient_id="p1",
    study_id="s1",
    image=ImageInfo("sub/a.png", height=100, width=80),
    modality="DX",
    anatomy="chest",
    view="PA",
    sex="F",
    age=63.5,
    report="Edema.",
    findings={
        "Edema": Finding("present", severity="mild", score=0.75, boxes=(Box(1.5, 2, 3, 4), Box(5, 6, 7, 8))),
        "Cardiomegaly": Finding("uncertain", measurements=(Measurement("ctr", 0.5, "1"),)),
        "Fracture": Finding("absent"),
        "Pneumonia": Finding("present", boxes=(Box(1, 2, 3, 4),)),
    },
    provenance=Provenance("d", "reader", "2", "human", reader="r7"),
    label_space="chexpert-12",
)
PLAIN = replace(FULL, id="b", patient_id="p2", study_id=None, view=None, sex=None, age=None, report=None)
PLAIN = replace(PLAIN, findings={"Pneumonia": Finding("present")}, image=ImageInfo("v.nii.gz", slice=3, slices=9))


def make(records=(FULL, PLAIN), splits=("train", "test"), **options) -> Manifest:
    """A manifest of these records, each with its split."""
    options = {"label_space": "chexpert-12", "image_root": "/images", **options}
    space = open_label_space(stored_label_space(options["label_space"]))
    rows = [{**row_of(record, space), "split": split} for record, split in zip(records, splits, strict=True)]
    return Manifest(pa.Table.from_pylist(rows, schema=manifest_schema(space.fields)), **options)


def nulls_left_out(record: Record) -> Record:
    return replace(record, findings={name: f for name, f in record.findings.items() if f.state is not None})


def test_records_go_in_and_come_out(tmp_path):
    manifest = Manifest.load(make().save(tmp_path / "m.parquet"))
    assert len(manifest) == 2
    assert list(next(manifest.records()).findings) == list(manifest.fields)
    assert [nulls_left_out(r) for r in manifest.records()] == [FULL, PLAIN]


def test_jsonl_is_one_record_a_line(tmp_path):
    lines = make().to_jsonl(tmp_path / "r.jsonl").read_text().splitlines()
    assert [nulls_left_out(Record.from_json(line)) for line in lines] == [FULL, PLAIN]


def test_states_items_and_patients():
    manifest = make()
    states = manifest.states(["Fracture", "Pulmonary Edema", "Cardiomegaly"])
    assert states.dtype == np.int8
    assert states.tolist() == [[0, 1, 2], [-1, -1, -1]]
    assert manifest.states().shape == (2, 12)
    assert manifest.patients().tolist() == ["p1", "p2"]
    first, second = manifest.items(["Fracture"])
    assert (first["image"], first["id"], first["patient_id"]) == ("/images/sub/a.png", "a", "p1")
    assert "slice" not in first
    assert (second["slice"], second["states"].dtype, second["states"].tolist()) == (3, np.int64, [-1])
    with pytest.raises(VividError, match="Fractur"):
        manifest.states(["Fractur"])


def test_fields_with_enough_of_each():
    records = [
        replace(PLAIN, id=f"{i}", patient_id=f"p{i}", findings={"Edema": Finding(s)}) for i, s in enumerate(STATES)
    ]
    manifest = make(records, ["train"] * 4 + ["val"] * 2)
    assert manifest.fields_with(min_present=3) == ["Edema"]
    with pytest.raises(VividError, match="no field is present"):
        manifest.fields_with(min_present=4)
    assert manifest.fields_with(min_present=1, min_absent=2) == ["Edema"]
    with pytest.raises(VividError, match="no field is present"):
        manifest.fields_with(min_present=1, min_absent=3)
    assert manifest.fields_with(min_present=3, split="train") == ["Edema"]
    with pytest.raises(VividError, match="no field is present"):
        manifest.fields_with(min_present=1, split="val")


STATES = ("present", "present", "present", "absent", "absent", None)


def test_select_and_the_splits_there_are():
    manifest = make()
    assert manifest.select("test").table["id"].to_pylist() == ["b"]
    assert len(manifest) == 2
    with pytest.raises(VividError, match=r"'val' is empty; the manifest has train \(1 images\), test \(1 images\)"):
        manifest.select("val")


def test_a_patient_in_two_splits_does_not_get_in_nor_out(tmp_path):
    both = [FULL, replace(PLAIN, patient_id="p1")]
    with pytest.raises(SplitError, match=r"row 1 \(train\) and row 2 \(test\)"):
        make(both)
    path = make().save(tmp_path / "m.parquet")
    table = pq.read_table(path)
    forged = table.set_column(table.column_names.index("patient_id"), "patient_id", pa.array(["p1", "p1"]))
    pq.write_table(forged, path)
    with pytest.raises(SplitError, match=r"m\.parquet: .*row 1 \(train\) and row 2 \(test\)"):
        Manifest.load(path)


def test_splits_by_rule_are_stored_with_the_manifest(tmp_path):
    manifest = make()
    manifest.splits = SplitRule(salt="x", val=0.0, test=0.5).to_dict()
    assert Manifest.load(manifest.save(tmp_path / "m.parquet")).splits == {"salt": "x", "val": 0.0, "test": 0.5}


def test_the_image_root_moves_with_the_manifest_if_it_is_inside(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    make(image_root=here / "images").save(here / "m.parquet")
    here.rename(there)
    assert Manifest.load(there / "m.parquet").items()[0]["image"] == str(there / "images/sub/a.png")
    assert Manifest.load(there / "m.parquet", image_root="/new").items()[0]["image"] == "/new/sub/a.png"
    make(image_root="/outside").save(there / "n.parquet")
    assert Manifest.load(there / "n.parquet").items()[0]["image"] == "/outside/sub/a.png"


def test_a_label_space_of_ones_own_is_stored_whole(tmp_path):
    fields = [{"name": "Split"}, {"name": "view", "parent": "Split"}]  # names that manifest columns have, too
    space = {"label_space_version": "1.0", "name": "mine", "description": "d", "source": "s", "fields": fields}
    (tmp_path / "space.json").write_text(json.dumps(space))
    record = replace(PLAIN, findings={"view": Finding("present")}, label_space="mine")
    manifest = make([record], ["train"], label_space=tmp_path / "space.json", image_root=tmp_path)
    path = manifest.save(tmp_path / "m.parquet")
    (tmp_path / "space.json").unlink()
    loaded = Manifest.load(path)
    assert (loaded.fields, loaded.label_space.parents) == (("Split", "view"), {"view": "Split"})
    assert [nulls_left_out(one) for one in loaded.records()] == [record]


def test_columns_are_compact_and_typed():
    table = make().table
    assert table.schema == manifest_schema(make().fields)
    assert table.schema.field("finding.Edema").type == pa.int8()
    assert pa.types.is_dictionary(table.schema.field("patient_id").type)


def test_what_is_no_manifest_is_one_error(tmp_path):
    path = tmp_path / "m.parquet"
    with pytest.raises(VividError, match=r"m\.parquet: no such manifest; make it with .* --manifest FILE"):
        Manifest.load(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(VividError, match=r"m\.parquet: not a readable Parquet"):
        Manifest.load(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(VividError, match="not a manifest"):
        Manifest.load(path)
    table = make().table.replace_schema_metadata({b"vivid_monai": b'{"manifest_version": "9"}'})
    pq.write_table(table, path)
    with pytest.raises(VividError, match="version '9'"):
        Manifest.load(path)


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("finding.Edema", pa.array([3, 0], pa.int8()), "'Edema' holds 0 to 3"),
        ("finding.Edema", pa.array([None, 0], pa.int8()), r"'finding.Edema' has 1 empty"),
        ("split", pa.array(["dev", "test"]), "a split 'dev'"),
        ("id", pa.array(["a", "a"]), "the id 'a' on more than one row"),
        ("patient_id", pa.array(["p1", None]), "'patient_id' has 1 empty"),
        ("age", pa.array(["old", "1"]), "'age' is string, not double"),
    ],
)
def test_what_breaks_a_rule_does_not_get_in(column, cells, message):
    table = make().table
    table = table.set_column(table.column_names.index(column), column, cells)
    with pytest.raises(VividError, match=message):
        Manifest(table, label_space="chexpert-12", image_root="/images")


def test_missing_columns_and_rows_do_not_get_in():
    with pytest.raises(VividError, match="no column 'patient_id'"):
        conform(make().table.drop_columns(["patient_id"]), make().fields)
    with pytest.raises(VividError, match="no rows"):
        make([], [])
    with pytest.raises(VividError, match="'Hernia' is no field of label space 'chexpert-12'"):
        make([replace(PLAIN, findings={"Hernia": Finding("present")})], ["train"])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = make().save(tmp_path / "m.parquet")
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vivid_monai.data.manifest.pq.write_table", full_disk)
    with pytest.raises(VividError, match="No space left"):
        make().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.parquet"]


def test_a_manifest_from_before_boxes_in_volumes_loads(tmp_path):
    table = make().table
    new = table.schema.field("boxes").type.value_type
    old = pa.list_(pa.struct([field for field in new if field.name not in ("z", "depth")]))
    boxes = [
        cell and [{name: value for name, value in box.items() if name not in ("z", "depth")} for box in cell]
        for cell in table["boxes"].to_pylist()
    ]
    table = table.drop(["boxes", "mask"]).append_column("boxes", pa.array(boxes, old))
    manifest = Manifest(table, label_space="chexpert-12", image_root="/images")
    assert [nulls_left_out(r) for r in manifest.records()] == [FULL, PLAIN]
    assert manifest.items(columns=["boxes"])[0]["boxes"][0]["z"] is None


def test_items_hold_the_columns_that_targets_ask_for():
    table = make().table
    table = table.set_column(table.column_names.index("mask"), "mask", pa.array(["masks/a.png", None]))
    manifest = Manifest(table, label_space="chexpert-12", image_root="/images")
    one, other = manifest.items(["Edema"], columns=["mask", "report", "boxes"])
    assert (one["mask"], one["report"]) == ("/images/masks/a.png", FULL.report)
    assert [box["field"] for box in one["boxes"]] == ["Edema", "Edema", "Pneumonia"]
    assert other.keys() == {"image", "slice", "id", "patient_id", "states"}, "what is null is absent"
    with pytest.raises(VividError, match="the manifest has no column 'masks'; it has id, image"):
        manifest.items(columns=["masks"])
