"""An Arrow file is there whole, with its key, or it is made again."""

import numpy as np
import pyarrow as pa
import pytest

from vivid_monai.errors import VividError
from vivid_monai.storage.arrow import ArrowFile

TABLE = pa.table({"a": [1, 2, 3], "b": pa.array(["x", "y", "x"]).dictionary_encode()})


def offsets(*ends: int) -> bytes:
    return np.array(ends, "<i4").tobytes()


DAMAGES = {
    "empty": lambda content: b"",
    "another kind": lambda content: b"PAR1" * 9,
    "no end": lambda content: content[:-20],
    "half": lambda content: content[: len(content) // 2],
    "a string that ends outside": lambda content: content.replace(offsets(0, 1, 2), offsets(0, 1, 1 << 30)),
    "a hole": lambda content: content[:64] + bytes(len(content) - 64 - 700) + content[-700:],
}


@pytest.fixture
def file(tmp_path) -> ArrowFile:
    return ArrowFile(tmp_path / "t.arrow", "this")


def make(file: ArrowFile, table: pa.Table = TABLE, **options) -> pa.Table | None:
    return file.open_or_make(table.schema, table.to_batches(max_chunksize=2), **options)


def test_what_goes_in_comes_out_mapped(file):
    assert file.open() is None
    before = pa.total_allocated_bytes()
    for table in (make(file), file.open()):
        assert table.equals(TABLE)
        assert table.schema.equals(TABLE.schema, check_metadata=True)
    assert pa.total_allocated_bytes() == before
    assert [path.name for path in file.path.parent.iterdir()] == ["t.arrow"]


def test_another_key_is_another_file(file):
    make(file)
    other = ArrowFile(file.path, "that")
    assert other.open() is None
    assert make(other, TABLE.slice(1)).num_rows == 2
    assert file.open() is None


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_none(file, damage):
    make(file)
    file.path.write_bytes(damage(file.path.read_bytes()))
    assert file.open() is None
    assert make(file).equals(TABLE)


def test_what_the_check_raises_leaves_no_file(file):
    def refuse(table: pa.Table) -> None:
        assert table.equals(TABLE)
        raise VividError("wrong rows")

    with pytest.raises(VividError, match="wrong rows"):
        make(file, check=refuse)
    assert list(file.path.parent.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told(file, capsys, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vivid_monai.storage.arrow.pa.ipc.new_file", full_disk)
    assert make(file) is None
    assert capsys.readouterr().err.count("\n") == 1
    assert list(file.path.parent.iterdir()) == []
    monkeypatch.undo()
    (file.path.parent / "folder").write_text("a file")
    assert make(ArrowFile(file.path.parent / "folder" / "t.arrow", "this")) is None
    assert "held in memory" in capsys.readouterr().err
