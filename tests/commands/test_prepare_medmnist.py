"""``vivid prepare medmnist`` as it is typed."""

import json
from pathlib import Path

import pytest

from tests.prepare.medmnist.making import COUNTS, arrays, call_official, write
from vivid_monai.cli import main
from vivid_monai.data.manifest import Manifest

pytest.importorskip("medmnist")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    call_official(monkeypatch, write(tmp_path / "organamnist_64.npz", arrays(64)))
    return tmp_path


def _run(root: Path, *options: str, name: str = "organamnist") -> int:
    return main(["prepare", "medmnist", name, "--out", str(root / "out"), *options])


def test_it_writes_all_files_and_says_what_comes_next(root, capsys):
    assert _run(root, "--root", str(root), "--size", "64", "--check", "images") == 0
    manifest = Manifest.load(root / "out" / "manifest.parquet")
    assert (len(manifest), manifest.table["height"][0].as_py()) == (sum(COUNTS.values()), 64)
    assert {path.name for path in (root / "out").iterdir()} == {
        *("images", "manifest.parquet", "card.md", "card.json", "skipped.csv")
    }
    card = json.loads((root / "out" / "card.json").read_text())
    assert {split: n["images"] for split, n in card["splits"].items()} == COUNTS
    printed = capsys.readouterr().out
    assert "NOT THE OFFICIAL" not in printed
    files = "['configs/evaluate.json','configs/eval/organamnist.json']"
    command = f'python -m monai.bundle run evaluating --config_file "{files}"'
    assert f"{command} --manifest {root / 'out' / 'manifest.parquet'}\n" in printed


def test_the_second_run_writes_the_same_manifest(root):
    tables = []
    for _ in range(2):
        assert _run(root, "--root", str(root), "--size", "64") == 0
        tables.append(Manifest.load(root / "out" / "manifest.parquet").table)
    assert tables[0].equals(tables[1])


def test_an_unofficial_file_is_told_in_the_terminal(root, capsys):
    path = write(root / "mine.npz", arrays(n_classes=2))
    assert _run(root, "--unofficial-file", str(path), name="pneumoniamnist") == 0
    printed = capsys.readouterr().out
    assert "Data card: pneumoniamnist-unofficial" in printed
    assert "NOT THE OFFICIAL FILE" in printed
    assert "configs/eval/table.json" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either --root"),
        (("--root", "/nowhere"), "/nowhere/organamnist_224.npz: no such file: download https://"),
        (("--unofficial-file", "/nowhere.npz"), "/nowhere.npz: no such file"),
        (("--root", ".", "--workers", "0"), "--workers 0"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(root, capsys, options, message):
    assert _run(root, *options) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert len(told.splitlines()) == 1
    assert not (root / "out").exists()


@pytest.mark.parametrize("typed", [("bloodmnist",), ("organamnist", "--size", "32")])
def test_names_and_sizes_that_do_not_exist(root, capsys, typed):
    with pytest.raises(SystemExit):
        main(["prepare", "medmnist", *typed, "--out", str(root / "out")])
    assert f"no {typed[-1]!r}. It is one of " in capsys.readouterr().err.replace("no 32.", "no '32'.")
