"""``vivid prepare lidc`` as it is typed."""

import csv
from pathlib import Path

import pytest

from tests.prepare.lidc.conftest import scan_of, sessions_of
from tests.prepare.lidc.making import balls, write_xml
from vivid_monai.cli import main
from vivid_monai.data.manifest import Manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six patients, XML in a folder of its own."""
    for number in range(1, 7):
        scan = scan_of(number)
        scan.write(tmp_path / "ct" / scan.patient, balls((scan.points(5)[40, 30], 4, 40)))
        sessions = sessions_of(scan, number)
        if number == 1:
            for marks, malignancy in zip(sessions, (1, 1, 2, 5), strict=True):  # mean 2.25, median 1.5
                marks[0].malignancy = malignancy
        write_xml(tmp_path / "xml" / f"{number}.xml", scan.uid, sessions)
    return tmp_path


def run(root: Path, *options: str) -> int:
    split = ("--val", "0", "--test", "0.5", "--salt", "s1")
    return main(["prepare", "lidc", str(root / "ct"), "--out", str(root / "out"), *split, *options])


def test_it_writes_all_files_and_says_what_comes_next(root, capsys):
    assert run(root, "--xml", str(root / "xml"), "--min-readers", "4", "--rating", "median", "--crop-mm", "20") == 0
    manifest = Manifest.load(root / "out" / "manifest.parquet")
    assert (len(manifest), manifest.table["height"][0].as_py(), manifest.image_root) == (6, 40, root / "out")
    assert manifest.states()[manifest.patients() == "LIDC-IDRI-0001"].tolist() == [[0]]
    assert {path.name for path in (root / "out").iterdir()} == {
        *("crops", "nodules.csv", "manifest.parquet", "card.md", "card.json", "skipped.csv")
    }
    with (root / "out" / "skipped.csv").open() as file:
        assert {row["reason"] for row in csv.DictReader(file)} == {"few-readers"}
    printed = capsys.readouterr().out
    assert "12 rows read, 6 kept, 6 skipped" in printed
    assert "--nodules makes the same nodules of it again" in printed

    frozen = (root / "out" / "nodules.csv").rename(root / "frozen.csv")
    assert run(root, "--nodules", str(frozen)) == 0
    assert len(Manifest.load(root / "out" / "manifest.parquet")) == 12


def test_the_table_alone_needs_no_ct_and_says_what_is_missing(root, capsys):
    (root / "xml" / "bad.xml").write_text("<?xml ")
    assert main(["prepare", "lidc", str(root / "xml"), "--out", str(root / "t"), "--table-only"]) == 0
    assert {path.name for path in (root / "t").iterdir()} == {"nodules.csv", "skipped.csv"}
    with (root / "t" / "nodules.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["diameter_mm"] for row in rows} == {""}
    with (root / "t" / "skipped.csv").open() as file:
        assert [row["reason"] for row in csv.DictReader(file)] == ["malformed-xml"]
    printed = capsys.readouterr().out
    assert "XML: 12 nodules." in printed
    assert "nothing in mm but z" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no rated nodule in 0 XML files"),
        (("--xml", "/nowhere"), "/nowhere: not a folder"),
        (("--crop-mm", "0"), "crop of 0 mm"),
        (("--min-readers", "0"), "min_readers is 0"),
        (("--workers", "0"), "--workers 0"),
        (("--nodules", "/nowhere.csv"), "/nowhere.csv"),
        (("--nodules", "a.csv", "--table-only"), "give only one of them"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(root, capsys, options, message):
    assert run(root, *options) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]
    assert not (root / "out").exists()
