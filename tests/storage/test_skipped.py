"""The list of images that could not be read."""

import csv
from pathlib import Path

import pytest

from vivid_monai.errors import VividError
from vivid_monai.storage.skipped import Skipped, SkipReport

A, B = Skipped("a, b.png", 'says "no"'), Skipped("ü.png", "truncated")


def test_each_path_is_told_once_and_counted() -> None:
    report = SkipReport()
    assert len(report) == 0
    assert report.add([A, B, A]) == [A, B]
    assert report.add([B]) == []
    assert len(report) == 2
    assert report.counts == {A: 2, B: 2}


def test_the_csv_reads_back(tmp_path: Path) -> None:
    report = SkipReport()
    report.add([A, B, A])
    report.write(tmp_path / "run" / "skipped.csv")
    with (tmp_path / "run" / "skipped.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"path": A.path, "reason": A.reason, "times": "2"},
        {"path": B.path, "reason": B.reason, "times": "1"},
    ]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["skipped.csv"]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VividError, match="cannot be written"):
        SkipReport().write(tmp_path / "file" / "skipped.csv")
