"""``vivid prepare`` as it is typed."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from vivid_monai.cli import main
from vivid_monai.data.manifest import Manifest


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of 30 patients with its images and its mapping beside it."""
    rows = ["file,mrn,edema"]
    for i in range(30):
        Image.linear_gradient("L").resize((8, 8 + i)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,p{i},{i % 2}")
    (tmp_path / "t.csv").write_text("\n".join([*rows, "gone.png,p99,1"]) + "\n")
    mapping = {
        "mapping_version": "1.0",
        "dataset": "mine",
        "source": "human",
        "image": "file",
        "patient": "mrn",
        "label_space": "chexpert-12",
        "label_columns": {"Edema": "edema"},
        "values": {"1": "present", "0": "absent"},
    }
    (tmp_path / "map.json").write_text(json.dumps(mapping))
    return tmp_path / "t.csv"


def run(table: Path, *options: str) -> int:
    return main(["prepare", "table", str(table), "--mapping", str(table.parent / "map.json"), *options])


def test_it_writes_prints_the_card_and_says_what_comes_next(table, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(table, "--out", str(out), "--check", "images", "--jsonl", "--salt", "s") == 0
    manifest = Manifest.load(out / "manifest.parquet")
    assert (len(manifest), manifest.splits["salt"]) == (30, "s")
    assert len((out / "records.jsonl").read_text().splitlines()) == 30
    printed = capsys.readouterr().out
    assert "31 rows read, 30 kept, 1 skipped" in printed
    assert printed.startswith((out / "card.md").read_text().rstrip())
    assert f"--manifest {out / 'manifest.parquet'}" in printed.splitlines()[-1]
    few = json.loads((out / "card.json").read_text())["few"]
    assert [one.split(" (val ")[0] for one in few] == ["Edema"], "fields without labels are not missed"
    assert f"- FEW: {few[0]}: under 10" in printed
    assert f"Under 10 images, too few to be answered by a bundle (val) or counted in a test: {few[0]}." in printed
    assert main(["verify", str(out / "records.jsonl")]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--val", "0.6", "--test", "0.6"), "must be in [0, 1)"),
        (("--workers", "0"), "--workers 0"),
        (("--mapping", "none.json"), "none.json"),
        (("--image-root", "/nowhere"), "no rows are left of 31 (missing-file 31)"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(table, tmp_path, capsys, options, message):
    out = tmp_path / "out"
    assert run(table, "--out", str(out), *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("source", ["chexpert", "nih"])
def test_a_root_without_a_table_is_one_line(tmp_path, capsys, source):
    assert main(["prepare", source, str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("source", ["chexpert", "nih", "table"])
def test_help_shows_options_with_their_defaults(capsys, source):
    with pytest.raises(SystemExit) as caught:
        main(["prepare", source, "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: vivid-med)" in text
    assert "(default: files)" in text


def test_a_data_set_that_lost_too_much_is_no_manifest_until_that_is_accepted(table, tmp_path, capsys):
    out = tmp_path / "out"
    for i in range(1, 9, 2):
        (tmp_path / f"{i}.png").unlink()
    assert run(table, "--out", str(out)) == 3
    told = capsys.readouterr().err
    assert "5 of 31 rows; 5 of 16 present of Edema would be lost; no manifest was written" in told
    assert "--accept-losses" in told
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "card.md", "skipped.csv"]
    assert run(table, "--out", str(out), "--accept-losses") == 0
    assert len(Manifest.load(out / "manifest.parquet")) == 26


@pytest.mark.parametrize(("out", "told"), [("", "--out is empty"), (b"\xf6", "not plain text in UTF-8; rename it")])
def test_a_folder_that_cannot_be_meant_is_told_before_anything_is_read(table, capsys, out, told):
    assert run(table, "--out", os.fsdecode(out)) == 2
    assert told in capsys.readouterr().err
