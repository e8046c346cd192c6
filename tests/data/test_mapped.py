"""A large manifest is the same manifest, whether it is mapped or in memory."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_manifest import FULL, PLAIN, make
from vivid_monai.data import manifest as mapped
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SplitError
from vivid_monai.errors import VividError
from vivid_monai.storage.arrow import ArrowFile
from vivid_monai.ums.record import Finding

ARROW = ["m.parquet", "m.parquet.arrow"]


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch):
    monkeypatch.setattr("vivid_monai.data.manifest.MAPPED_FROM", 1)
    monkeypatch.setattr(mapped, "_BATCH", 3)  # no divisor of the row groups


@pytest.fixture
def path(tmp_path) -> Path:
    others = [
        replace(PLAIN, id=f"i{n}", patient_id=f"q{n}", view=view, findings={"Edema": Finding(state)})
        for n, (view, state) in enumerate([("PA", "absent"), (None, None), ("AP", "present"), ("PA", "uncertain")] * 5)
    ]
    splits = ["train", "val", *(["train", "test", "train", "train"] * 5)]
    manifest = make([FULL, replace(PLAIN, patient_id="p1000"), *others], splits)
    path = manifest.save(tmp_path / "m.parquet")
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as out:
        for first in range(0, len(table), 5):
            rows = pa.Table.from_pylist(table.slice(first, 5).to_pylist(), table.schema)  # words of its own
            out.write_table(rows)
    return path


def in_memory(path: Path) -> Manifest:
    return Manifest(pq.read_table(path), label_space="chexpert-12", image_root="/images")


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def forge(path: Path, column: str, cells: list) -> None:
    table = pq.read_table(path)
    where = table.column_names.index(column)
    cells = pa.array([*cells, *table[column].to_pylist()[len(cells) :]])
    pq.write_table(table.set_column(where, column, cells), path, row_group_size=5)


def test_it_is_the_manifest_in_memory(path):
    held = in_memory(path)
    for manifest in (Manifest.load(path), Manifest.load(path)):  # made, found
        assert manifest.table.equals(held.table)
        assert manifest.table.schema.equals(held.table.schema, check_metadata=False)
        assert list(manifest.records()) == list(held.records())
        assert (manifest.states() == held.states()).all()
        assert manifest.patients().tolist() == held.patients().tolist()
        assert manifest.fields_with(5, "train") == held.fields_with(5, "train")
        for split in ("train", "val", "test"):
            part, same = manifest.select(split), held.select(split)
            assert part.table.equals(same.table)
            assert part.select(split).table.equals(same.table)
            pairs = zip(part.items(["Edema"]), same.items(["Edema"]), strict=True)
            assert all(str(one) == str(other) for one, other in pairs)
    with pytest.raises(VividError, match=r"'val' is empty; the manifest has train \(16 images\)"):
        manifest.select("train").select("val")
    assert names(path) == [*ARROW, *(f"m.parquet.{split}.arrow" for split in ("test", "train", "val"))]


def test_it_is_held_by_nobody(path):
    Manifest.load(path).select("train")
    before = pa.total_allocated_bytes()
    train = Manifest.load(path).select("train")
    assert pa.total_allocated_bytes() == before
    assert train.table.num_rows == 16


def test_what_was_checked_is_not_checked_again(path, monkeypatch):
    Manifest.load(path)
    monkeypatch.setattr(mapped, "check_rows", lambda *_: pytest.fail("checked again"))
    Manifest.load(path)


def test_the_items_of_a_hundred_thousand_rows_are_a_small_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "_BATCH", 1 << 17)
    n = 100_000
    table = make().table.take(pa.array(np.zeros(n, int)))
    for name in ("id", "patient_id"):
        table = table.set_column(table.column_names.index(name), name, pa.array([str(i) for i in range(n)]))
    path = Manifest(table, label_space="chexpert-12", image_root="/images").save(tmp_path / "m.parquet")
    items = Manifest.load(path).select("train").items()
    assert len(pickle.dumps(items)) < 2000
    last = pickle.loads(pickle.dumps(items[-5:]))[0]
    assert (last["id"], last["patient_id"]) == (str(n - 5), str(n - 5))


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("id", ["a", "i7"], r"m\.parquet: .*the id 'i7' on more than one row"),
        ("split", ["dev"], r"m\.parquet: .*a split 'dev'"),
        ("finding.Edema", [3], r"m\.parquet: .*'Edema' holds -1 to 3"),
        ("patient_id", ["p1", "q0"], r"m\.parquet: .* row 2 \(val\)"),
        ("source", [None], r"m\.parquet: .*'source' has 1 empty"),
        ("age", ["old"] * 22, r"m\.parquet: .*'age' is string"),
    ],
)
def test_what_breaks_a_rule_does_not_get_in_and_leaves_nothing(path, column, cells, message):
    forge(path, column, cells)
    for _ in range(2):
        with pytest.raises(SplitError if column == "patient_id" else VividError, match=message):
            Manifest.load(path)
    assert names(path) == ["m.parquet"]


def test_a_column_of_another_type_is_cast(path):
    held = in_memory(path)
    forge(path, "patient_id", [])  # plain strings
    table = pq.read_table(path)
    table = table.set_column(table.column_names.index("age"), "age", table["age"].cast(pa.float32()))
    pq.write_table(table.drop_columns(["report", "boxes", "reader"]), path)
    loaded = Manifest.load(path).table
    assert loaded.drop_columns(["report", "boxes", "reader"]).equals(
        held.table.drop_columns(["report", "boxes", "reader"])
    )
    assert (loaded["report"].null_count, loaded["reader"].null_count) == (22, 22)


def test_a_changed_manifest_is_read_anew(path):
    forge(path, "id", ["y"])
    old = Manifest.load(path).select("train")
    items, pickled = old.items(["Edema"]), pickle.dumps(old.items(["Edema"]))
    status = path.stat()
    forge(path, "id", ["z"])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as an archive sets it
    assert path.stat().st_size == status.st_size
    assert Manifest.load(path).select("train").items(["Edema"])[0]["id"] == "z"
    assert items[0]["id"] == "y"
    with pytest.raises(VividError, match=r"m\.parquet\.train\.arrow: has changed or gone"):
        pickle.loads(pickled)


@pytest.mark.parametrize("which", ["m.parquet.arrow", "m.parquet.train.arrow"])
def test_a_damaged_arrow_file_is_made_again(path, which):
    rows = Manifest.load(path).select("train").table.to_pylist()
    damaged = path.with_name(which)
    damaged.unlink()
    damaged.write_bytes(b"ARROW1")
    assert Manifest.load(path).select("train").table.to_pylist() == rows
    assert damaged.stat().st_size > 1000


def test_an_arrow_file_of_another_schema_is_made_again(path):
    manifest = Manifest.load(path)
    rows, train = manifest.table, manifest.select("train").table
    file, other = mapped.arrow_file_of(path), pa.table({"id": ["a"]})
    for name in ("m.parquet.arrow", "m.parquet.train.arrow"):
        path.with_name(name).unlink()
        ArrowFile(path.with_name(name), file.key).open_or_make(other.schema, other.to_batches())
    assert Manifest.load(path).table.equals(rows)
    assert Manifest.load(path).select("train").table.equals(train)


@pytest.fixture
def no_room(monkeypatch):
    """Makes the folder one in which nothing can be written."""

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    return lambda: monkeypatch.setattr("vivid_monai.storage.files.tempfile.mkstemp", refuse)


def test_where_nothing_can_be_written_the_rows_are_held(path, no_room, capsys):
    no_room()
    manifest = Manifest.load(path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "m.parquet.arrow: cannot be written: [Errno 30] Read-only file system; its rows are held in memory" in said
    assert manifest.table.equals(in_memory(path).table)
    assert manifest.select("train").table.equals(in_memory(path).select("train").table)
    assert capsys.readouterr().err == ""
    assert names(path) == ["m.parquet"]
    forge(path, "id", ["i7"])
    with pytest.raises(VividError, match="the id 'i7' on more than one row"):
        Manifest.load(path)


def test_where_only_a_split_cannot_be_written_its_rows_are_held(path, no_room, capsys):
    manifest = Manifest.load(path)
    no_room()
    train = manifest.select("train")
    assert train.table.equals(in_memory(path).select("train").table)
    assert "m.parquet.train.arrow: cannot be written" in capsys.readouterr().err
    ids = train.table["id"].to_pylist()
    assert [item["id"] for item in pickle.loads(pickle.dumps(train.items()))] == ids


def test_a_small_manifest_leaves_no_file(path, monkeypatch):
    monkeypatch.undo()
    Manifest.load(path).select("train").items()
    assert names(path) == ["m.parquet"]


def test_parquet_that_ends_early_is_one_error(path):
    content = path.read_bytes()
    hole = content[:200] + bytes(len(content) - 200 - 20_000) + content[-20_000:] if len(content) > 21_000 else None
    path.write_bytes(hole or content[: len(content) // 2])
    with pytest.raises(VividError, match=r"m\.parquet: not a readable Parquet"):
        Manifest.load(path)
