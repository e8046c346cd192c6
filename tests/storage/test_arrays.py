"""The array cache: every row its image's, found for nothing else, whole or not at all."""

import json
import os
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.storage.numbered import BROKEN, SHAPE, N, Reader, assert_right, get, image
from vivid_monai.errors import VividError
from vivid_monai.storage import arrays
from vivid_monai.storage.arrays import ArrayCache, Chunk, Rows, fingerprint, open_rows
from vivid_monai.storage.skipped import Skipped


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path / "log")


def entries(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir()]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_is_its_images(root: Path, reader: Reader, workers: int) -> None:
    for _ in range(2):  # built, then found
        pixels = get(root, reader, workers=workers)
        assert_right(pixels)
    assert isinstance(pixels.array, np.memmap)
    assert reader.read() == list(range(N)), "read once"
    assert_right(get(None, reader, workers=workers))


def test_what_is_taken_out_can_be_changed(root: Path, reader: Reader) -> None:
    pixels = get(root, reader)
    taken = pixels[1]
    assert isinstance(taken, torch.Tensor)
    taken.zero_()
    assert_right(pixels)


def test_pickled_it_is_its_folders_name(root: Path, reader: Reader) -> None:
    shape = (5, 1, 200, 300)
    pixels = get(root, lambda index: torch.full(shape[1:], index, dtype=torch.uint8), shape=shape)
    pickled = pickle.dumps(pixels)
    assert len(pickled) < 1000
    assert isinstance(pickle.loads(pickled).array, np.memmap)
    memory = pickle.loads(pickle.dumps(get(None, reader)))
    assert_right(memory)


def test_another_key_or_number_is_another_entry(root: Path, reader: Reader) -> None:
    get(root, reader)
    get(root, reader, lambda: {"files": "others"})
    assert_right(get(root, reader, shape=(100, *SHAPE[1:])), 100, [index for index in BROKEN if index < 100])
    get(root, reader)
    assert len(entries(root)) == 3


def test_memory_is_shared_as_long_as_somebody_holds_it(reader: Reader) -> None:
    def other() -> dict:
        return {"files": "of this test"}

    held = get(None, reader, other)
    assert get(None, reader, other) is held
    before = len(reader.read())
    del held
    get(None, reader, other)
    assert len(reader.read()) > before


def test_a_fingerprint_tells_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    places = [(str(path), None)]
    before = fingerprint(places, 1)
    assert fingerprint(places, 1) == before
    assert fingerprint([(str(path), 3)], 1) != before
    status = path.stat()
    path.write_bytes(b"54321")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copying tool may leave it
    assert fingerprint(places, 1) != before
    folder, within = fingerprint([(str(tmp_path), None)], 1), path.stat()
    path.write_bytes(b"67890")
    os.utime(path, ns=(within.st_atime_ns, within.st_mtime_ns))
    assert fingerprint([(str(tmp_path), None)], 1) != folder, "of a folder, every file counts"
    path.unlink()
    assert len({before, fingerprint(places, 1), fingerprint([(str(tmp_path / "b.png"), None)], 1)}) == 3


def test_a_full_disk_is_told_and_what_is_done_is_kept(
    root: Path, reader: Reader, capsys: pytest.CaptureFixture
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def read(index: int) -> torch.Tensor | Skipped:
        if index == 128:
            # No file may be written beyond 1000 bytes: the header (128) and two chunks of 64 × 6 fit, a third does not.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        return reader(index)

    try:
        with pytest.raises(VividError, match=r"cannot be stored.*\(--cache\).*the same command goes on"):
            get(root, read, seconds=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.suffix for path in entries(root)] == [".part"], "nothing half-written is taken as whole"
    reader.log.unlink()
    assert_right(get(root, reader))
    assert reader.read() == list(range(128, N))
    assert f"continued after 128 of {N} images" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_told_before_anything_is_decoded(
    root: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(root.parent)
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda path: usage._replace(free=N * 6 - 1))
    with pytest.raises(VividError, match=r"0\.0 GB are needed.*--cache"):
        get(root, reader)
    assert reader.read() == []
    monkeypatch.setattr(arrays.shutil, "disk_usage", lambda path: usage._replace(free=N * 6))
    assert_right(get(root, reader))


def test_what_a_killed_process_left_behind_its_record_is_dropped(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(index: int) -> torch.Tensor:
        if index == 200:
            raise KeyboardInterrupt
        return image(index)

    with pytest.raises(KeyboardInterrupt):
        get(root, stopped, seconds=0)
    (part,) = entries(root)
    assert json.loads((part / "entry.json").read_text())["done"] == 192
    with (part / "array.npy").open("rb+") as file:
        file.seek(-6 * (N - 192), os.SEEK_END)
        file.write(b"torn row")
    reader = Reader(tmp_path / "log", broken=(250,))
    assert_right(get(root, reader), broken=(250,))
    assert reader.read() == list(range(192, N))


@pytest.mark.parametrize("damage", ["short pixels", "other header", "record", "other key", "values"])
def test_a_part_that_cannot_be_gone_on_with_is_begun_again(root: Path, reader: Reader, damage: str) -> None:
    get(root, reader)
    (entry,) = entries(root)
    part = entry.rename(f"{entry}.part")
    spoil(part, damage)
    reader.log.unlink()
    assert_right(get(root, reader))
    assert reader.read() == list(range(N))


@pytest.mark.parametrize("damage", ["short pixels", "other header", "record", "no pixels"])
def test_a_damaged_entry_is_made_again_with_a_message(
    root: Path, reader: Reader, damage: str, capsys: pytest.CaptureFixture
) -> None:
    get(root, reader)
    (entry,) = entries(root)
    spoil(entry, damage)
    with pytest.raises(VividError, match=rf"{entry}: damaged entry of a cache"):
        open_rows(entry)
    assert_right(get(root, reader))
    assert capsys.readouterr().err.count("it is made again") == 1


def test_a_checksum_finds_a_changed_value(root: Path, reader: Reader) -> None:
    get(root, reader)
    (entry,) = entries(root)
    content = bytearray((entry / "array.npy").read_bytes())
    content[-9] ^= 1
    (entry / "array.npy").write_bytes(content)
    reader.log.unlink()
    get(root, reader)
    assert reader.read() == [], "not looked for unless asked for"
    assert_right(get(root, reader, checksum=True))
    assert reader.read() == list(range(N))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_rows_of_another_dtype_go_on_at_a_chunk(root: Path, where: str) -> None:
    """As features, which an encoder gives batch by batch."""

    def fill(first: int) -> Iterator[Chunk]:
        started.append(first)
        for start in range(first, 10, 4):
            if len(started) == 1 and start == 8:
                raise KeyboardInterrupt
            rows = np.arange(start, min(start + 4, 10), dtype=np.float64)[:, None] + [0, 0.5, 0.25]
            rows[rows[:, 0] == 5] = 0
            yield rows, {5: Skipped("5.png", "torn")} if start == 4 else {}

    def run() -> Rows:
        cache = ArrayCache(None if where == "memory" else root, checksum=True, seconds=0)
        return cache.get(lambda: {"encoder": "x"}, fill, 10, shape=(3,), title="features")

    started: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run()
    got = run()
    assert started == ([0, 0] if where == "memory" else [0, 8])
    assert (got.array.dtype, got.array.shape) == (np.float32, (10, 3))
    assert got.unreadable == {5: Skipped("5.png", "torn")}
    assert got.array[[0, 4, 9], 1].tolist() == [0.5, 4.5, 9.5]
    assert not got.array[5].any()


def test_an_entry_of_the_version_before_is_read_where_every_image_could_be_read(root: Path, reader: Reader) -> None:
    """It had the number of unreadable images in its record, and which they are in another file."""
    for broken in ((), (7,)):
        shutil.rmtree(root, ignore_errors=True)
        get(root, Reader(reader.log, broken=broken))
        (entry,) = entries(root)
        record = json.loads((entry / "entry.json").read_text())
        (entry / "entry.json").write_text(json.dumps({**record, "unreadable": len(broken)}))
        reader.log.unlink()
        assert_right(get(root, Reader(reader.log, broken=broken)), broken=broken)
        assert len(reader.read()) == (N if broken else 0)
        reader.log.unlink(missing_ok=True)


def test_too_few_rows_are_an_error(root: Path) -> None:
    with pytest.raises(VividError, match="the pass ended after 4 of 10 images"):
        ArrayCache(root).get(dict, lambda first: [(np.ones((4, 2)), {})], 10, shape=(2,))


def spoil(folder: Path, damage: str) -> None:
    pixels, record = folder / "array.npy", folder / "entry.json"
    if damage == "short pixels":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "other header":
        pixels.write_bytes(pixels.read_bytes().replace(b"(300, 1, 2, 3)", b"(300, 1, 3, 2)"))
    elif damage == "record":
        record.write_text(record.read_text()[:-9])
    elif damage == "other key":
        record.write_text(record.read_text().replace("those", "THOSE"))
    elif damage == "values":
        pixels.write_bytes(pixels.read_bytes()[:-1] + b"-")
    else:
        pixels.unlink()


def test_files_that_change_meanwhile_leave_no_entry(root: Path, reader: Reader) -> None:
    def change() -> dict:
        return {"files": len(reader.read())}

    for build in (lambda: get(root, reader, change), lambda: get(None, reader, change)):
        with pytest.raises(VividError, match=r"changed while they were read; run the same command again"):
            build()
    assert entries(root) == []


def test_images_that_cannot_be_cached_are_errors(root: Path, tmp_path: Path) -> None:
    nothing = Reader(tmp_path / "log", broken=tuple(range(N)))
    with pytest.raises(VividError, match=r"none of 300 images can be read; the first: nr\. 0"):
        get(root, nothing)
    assert entries(root) == []
    with pytest.raises(VividError, match=r"none of 300 images can be read; the first: nr\. 0"):
        get(None, nothing)
    with pytest.raises(VividError, match=r"image 70 is \(1, 1, 1\), others are \(1, 2, 3\)"):
        get(root, lambda index: image(index)[:, : 2 - (index == 70), : 3 - 2 * (index == 70)])


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, reader: Reader) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VividError, match=r"file/cache.*cannot be stored"):
        get(tmp_path / "file" / "cache", reader)
