"""Files are replaced whole or left alone."""

import os
from pathlib import Path

import pytest

from vivid_monai.errors import VividError
from vivid_monai.storage import files
from vivid_monai.storage.files import _remove_left, part_folder, whole_file


def test_a_finished_file_takes_its_place_with_ordinary_rights(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with whole_file(target) as part:
        part.write_text("whole")
        assert not target.exists()
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    assert target.read_text() == "whole"
    assert target.stat().st_mode == plain.stat().st_mode
    assert os.listdir(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError("broken off"), OSError(28, "No space left on device")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    expected = VividError if isinstance(error, OSError) else RuntimeError

    def break_off() -> None:
        with whole_file(target) as part:
            part.write_text("half")
            raise error

    with pytest.raises(expected, match=r"file\.txt.*No space|broken off"):
        break_off()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    (tmp_path / ".file.txt.abcd_123.part").write_text("half")
    (tmp_path / ".folder.abcd_123.part" / "folder").mkdir(parents=True)
    (tmp_path / ".notes.part").write_text("a file of the user's")
    with whole_file(tmp_path / "held.txt") as held, part_folder(tmp_path / "folder") as folder:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [".notes.part", held.name, folder.parent.name]
        )
        _remove_left.cache_clear()  # as another process
        with whole_file(tmp_path / "file.txt") as part:
            part.write_text("whole")
        assert held.exists()
        folder.replace(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == [".notes.part", "file.txt", "folder", "held.txt"]
    assert (tmp_path / "folder").stat().st_mode == tmp_path.stat().st_mode | 0o055


def test_where_there_are_no_locks_nothing_is_taken_to_be_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / ".file.txt.abcd_123.part").write_text("perhaps another process is at it")
    with whole_file(tmp_path / "file.txt") as part, part_folder(tmp_path / "folder") as folder:
        part.write_text("whole")
        folder.replace(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == [".file.txt.abcd_123.part", "file.txt", "folder"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VividError, match="file"), whole_file(tmp_path / "file" / "below.txt"):
        pytest.fail("the block must not run")
