"""Entries of a cache: their names, and that one process makes them."""

import os
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from vivid_monai.errors import VividError
from vivid_monai.storage.files import disk_errors, entry_name, made_by_one, versions


def test_a_name_depends_on_the_content_of_the_key_alone() -> None:
    assert entry_name({"a": 1, "b": [2]}) == entry_name({"b": [2], "a": 1})
    assert entry_name({"a": 1}) != entry_name({"a": 2})
    assert len(entry_name({})) == 32


def test_versions_are_those_of_what_is_installed() -> None:
    assert versions(["numpy", "no-such-package"]).keys() == {"numpy"}


def test_the_lock_is_held_within_the_block_and_no_longer(tmp_path: Path) -> None:
    entry = tmp_path / "new" / "entry"
    other = FileLock(tmp_path / "new" / "entry.lock")
    with made_by_one(entry, "waiting", option="--cache"), pytest.raises(Timeout):
        other.acquire(timeout=0)
    other.acquire(timeout=0)
    other.release()


def test_errors_of_the_file_system_name_the_option(tmp_path: Path) -> None:
    with (
        pytest.raises(VividError, match=r"here: cannot be stored: .*space.*\(--cache\)"),
        disk_errors(Path("here"), option="--cache"),
    ):
        raise OSError(28, os.strerror(28))
    (tmp_path / "file").write_text("")
    with pytest.raises(VividError, match="cannot be stored"), made_by_one(tmp_path / "file" / "a", "", option="--x"):
        pytest.fail("the block must not run")
