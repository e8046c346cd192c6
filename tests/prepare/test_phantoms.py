"""A folder of phantoms is whole, found again, and never mixed with another."""

import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivid_monai.cli import main
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.phantom import generate
from vivid_monai.prepare import phantoms as folder
from vivid_monai.prepare.phantoms import prepare


def digest(root: Path) -> str:
    """One number for all bytes of all files."""
    whole = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        whole.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return whole.hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms") / "made"
    return prepare(root, n=310, seed=3, size=32, workers=2).parent


def test_images_manifest_and_reports_belong_together(made: Path) -> None:
    manifest = Manifest.load(made / "manifest.parquet")
    assert len(manifest) == 310
    records = list(manifest.records())
    assert {one.patient_id for one in records[:12]} == {f"phantom3-{k:06d}" for k in range(5)}
    for index in (0, 1, 17, 309):
        phantom = generate(3, index, 32)
        record = records[index]
        assert record == phantom.record
        assert np.array_equal(np.asarray(Image.open(made / record.image.path)), phantom.image)
    reports = [json.loads(line) for line in (made / "reports.jsonl").read_text().splitlines()]
    assert {r["study_id"]: r["report"] for r in reports} == {r.study_id: r.report for r in manifest.records()}
    counts = [len(manifest.select(split)) for split in ("train", "val", "test")]
    assert sum(counts) == 310
    assert counts[0] > 150
    assert counts[2] > 30


def test_the_number_of_workers_changes_nothing(made: Path, tmp_path: Path) -> None:
    alone = prepare(tmp_path / "alone", n=310, seed=3, size=32, workers=1).parent
    assert digest(alone) == digest(made)


def test_a_folder_is_found_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_write_all", lambda *_: pytest.fail("written again"))
    before = digest(made)
    assert prepare(made, n=310, seed=3, size=32) == made / "manifest.parquet"
    assert digest(made) == before
    assert not list(made.parent.glob(".*"))


@pytest.mark.parametrize(
    ("change", "told"),
    [({"n": 311}, "n = 310"), ({"seed": 4}, "seed = 3"), ({"size": 33}, "size"), ({"test": 0.3}, "splits")],
)
def test_other_settings_are_refused(made: Path, change: dict, told: str) -> None:
    with pytest.raises(VividError, match=rf"made with {told}"):
        prepare(made, **({"n": 310, "seed": 3, "size": 32} | change))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(VividError, match="something else"):
        prepare(tmp_path, n=5, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_lost_images_are_an_error(tmp_path: Path) -> None:
    root = prepare(tmp_path / "few", n=8, size=32).parent
    next(root.rglob("*.png")).unlink()
    with pytest.raises(VividError, match="1 of its 8 images are missing"):
        prepare(root, n=8, size=32)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_write_reports", full)
    with pytest.raises(VividError, match="No space left on device"):
        prepare(tmp_path / "new", n=8, size=32)
    assert not list(tmp_path.iterdir())


def test_an_error_of_a_worker_comes_through(tmp_path: Path) -> None:
    with pytest.raises(VividError, match="size must be"):
        folder._write_all(tmp_path, 0, 7, 400, 2)


def test_a_worker_that_is_killed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_write_image", kill_process)
    with pytest.raises(VividError, match=r"cannot be written: .*terminated"):
        prepare(tmp_path / "new", n=310, size=32, workers=2)
    assert not list(tmp_path.iterdir())


def kill_process(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_of_two_at_once_one_serves_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, write_reports = tmp_path / "shared", folder._write_reports

    def meanwhile(path: Path, rows: list) -> None:
        monkeypatch.setattr(folder, "_write_reports", write_reports)
        write_reports(path, rows)
        prepare(root, n=8, size=32)

    monkeypatch.setattr(folder, "_write_reports", meanwhile)
    assert prepare(root, n=8, size=32) == root / "manifest.parquet"
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


@pytest.mark.parametrize("wrong", [{"n": 0}, {"size": 20}, {"seed": -1}, {"val": 0.9}, {"n": 400, "workers": 0}])
def test_bad_settings_are_errors(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(VividError):
        prepare(tmp_path / "new", **({"n": 5, "size": 32} | wrong))
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", "--out", str(tmp_path / "x"), "--n", "6", "--size", "40", "--seed", "1"]) == 0
    assert "6 phantoms of 40 pixels" in capsys.readouterr().out
    assert len(Manifest.load(tmp_path / "x" / "manifest.parquet")) == 6
