"""An official file, made here and known to the package as official, becomes images and rows."""

import hashlib
import io
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from tests.prepare.conftest import values
from tests.prepare.medmnist.making import COUNTS, arrays, call_official, md5, write
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.images.read import read_image
from vivid_monai.prepare import medmnist as source_module
from vivid_monai.prepare.build import prepare
from vivid_monai.prepare.medmnist import image_path, read
from vivid_monai.storage.files import _remove_left

medmnist = pytest.importorskip("medmnist")


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write(tmp_path / "root" / "organamnist.npz", arrays())
    call_official(monkeypatch, path)
    return path


def _manifest(source, out: Path) -> Manifest:
    return Manifest.load(prepare(source, check="images").write(out))


def _pixels(manifest: Manifest) -> list[np.ndarray]:
    images = [read_image(manifest.image_root / image)[0] for image in manifest.table["image"].to_pylist()]
    return [np.rint(image * 255).astype(np.uint8) for image in images]


def test_pixels_splits_ids_and_states_are_the_files(official, tmp_path):
    manifest = _manifest(read("organamnist", root=official.parent, size=28, out=tmp_path / "out"), tmp_path / "out")
    rows, made = manifest.table.to_pylist(), np.load(official)
    ids = [f"{split}-{position:05d}" for split, n in COUNTS.items() for position in range(n)]
    assert [row["id"] for row in rows] == [row["patient_id"] for row in rows] == ids
    assert [row["split"] for row in rows] == [split for split, n in COUNTS.items() for _ in range(n)]
    for row, pixels in zip(rows, _pixels(manifest), strict=True):
        split, position = row["id"].split("-")
        assert np.array_equal(pixels, made[f"{split}_images"][int(position)])
        assert (row["dataset"], row["labeller"], row["height"], row["width"]) == ("organamnist", "MedMNIST", 28, 28)
        assert (row["modality"], row["anatomy"], row["view"], row["source"]) == ("CT", "abdomen", "axial", "human")
    classes = np.concatenate([made[f"{split}_labels"][:, 0] for split in COUNTS])
    assert np.array_equal(manifest.states(), np.eye(11, dtype=np.int8)[classes])
    assert manifest.fields == tuple(medmnist.INFO["organamnist"]["label"].values())
    assert manifest.label_space.name == "organamnist-11"


def test_png_files_hold_the_bytes_themselves(official, tmp_path):
    source = read("organamnist", root=official.parent, size=28, out=tmp_path / "out")
    for image, expected in zip(values(source.rows.table["image"]), np.load(official)["train_images"], strict=False):
        with Image.open(tmp_path / "out" / image) as png:
            assert (png.format, png.mode) == ("PNG", "L")
            assert np.array_equal(np.asarray(png), expected)


def test_left_stays_left_and_top_stays_top(tmp_path, monkeypatch):
    made = arrays()
    made["train_images"][0] = 0
    made["train_images"][0, :9, :4] = 200  # a tall mark in the upper left corner
    path = write(tmp_path / "organamnist.npz", made)
    call_official(monkeypatch, path)
    source = read("organamnist", root=tmp_path, size=28, out=tmp_path / "out")
    pixels = read_image(tmp_path / "out" / source.rows.table["image"][0])[0]
    assert np.array_equal(np.argwhere(pixels > 0.5).max(axis=0), [8, 3])


@pytest.mark.parametrize("size", [64, 128, 224])
def test_each_size_is_read_from_its_own_file(tmp_path, monkeypatch, size):
    path = write(tmp_path / f"organamnist_{size}.npz", arrays(size))
    call_official(monkeypatch, path)
    source = read("organamnist", root=tmp_path, size=size, out=tmp_path / "out")
    assert source.files == [path]
    assert set(values(source.rows.table["height"])) == {size}
    assert read_image(tmp_path / "out" / source.rows.table["image"][0]).shape == (1, size, size)


def test_pneumonia_is_one_finding_and_normal_its_absence(tmp_path, monkeypatch):
    path = write(tmp_path / "pneumoniamnist.npz", arrays(n_classes=2))
    call_official(monkeypatch, path, "pneumoniamnist")
    manifest = _manifest(read("pneumoniamnist", root=tmp_path, size=28, out=tmp_path / "out"), tmp_path / "out")
    assert manifest.fields == ("pneumonia",)
    classes = np.concatenate([np.load(path)[f"{split}_labels"] for split in COUNTS])
    assert np.array_equal(manifest.states(), classes)


def test_the_card_tells_the_file_and_that_patients_are_unknown(official, tmp_path):
    prepared = prepare(read("organamnist", root=official.parent, size=28, out=tmp_path), check="images")
    card = prepared.card
    notes = " ".join(card["notes"])
    assert f"The official file: MD5 {md5(official)}" in notes
    assert "Licence CC BY 4.0" in notes
    assert "each image stands for a patient of its own" in notes
    assert "by CT volume" in notes
    assert card["sources"][0]["sha256"] == hashlib.sha256(official.read_bytes()).hexdigest()


def test_a_missing_file_is_told_with_url_md5_and_path(tmp_path):
    with pytest.raises(VividError) as error:
        read("organamnist", root=tmp_path, out=tmp_path / "out")
    info = medmnist.INFO["organamnist"]
    for told in (str(tmp_path / "organamnist_224.npz"), info["url_224"], info["MD5_224"], "--download"):
        assert told in str(error.value)
    assert not (tmp_path / "out").exists()


def test_another_md5_is_refused(tmp_path):
    path = write(tmp_path / "organamnist.npz", arrays())
    with pytest.raises(VividError, match="not the official file") as error:
        read("organamnist", root=tmp_path, size=28, out=tmp_path / "out")
    for told in (str(path), md5(path), medmnist.INFO["organamnist"]["MD5"], "--unofficial-file"):
        assert told in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("entries", [{"n_samples": COUNTS | {"val": 6}}, {"n_samples": COUNTS | {"train": 11}}])
def test_other_counts_than_the_packages_are_refused(official, tmp_path, monkeypatch, entries):
    call_official(monkeypatch, official, **entries)
    with pytest.raises(VividError, match=r"official are \{'train'") as error:
        read("organamnist", root=official.parent, size=28, out=tmp_path / "out")
    assert str(official) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_pixels_of_another_size_than_the_files_name_are_refused(tmp_path, monkeypatch):
    call_official(monkeypatch, write(tmp_path / "organamnist_64.npz", arrays(28)))
    with pytest.raises(VividError, match=r"not grey images uint8 \(12, 64, 64\)"):
        read("organamnist", root=tmp_path, size=64, out=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize("error", [URLError("no route to host"), ConnectionResetError("reset"), RuntimeError("hash")])
def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(url: str, filepath: Path, **_: object) -> None:
        Path(filepath).write_bytes(b"half")
        raise error

    monkeypatch.setattr("monai.apps.utils.download_url", fail)
    root, info = tmp_path / "root", medmnist.INFO["organamnist"]
    with pytest.raises(VividError, match="could not be downloaded") as raised:
        read("organamnist", root=root, out=tmp_path / "out", download=True)
    for told in (str(root / "organamnist_224.npz"), str(error), info["url_224"], info["MD5_224"], "put it there"):
        assert told in str(raised.value)
    assert list(root.iterdir()) == []


def test_a_download_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    def stop(url: str, filepath: Path, **_: object) -> None:
        Path(filepath).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("monai.apps.utils.download_url", stop)
    with pytest.raises(KeyboardInterrupt):
        read("organamnist", root=tmp_path / "root", out=tmp_path / "out", download=True)
    assert list((tmp_path / "root").iterdir()) == []


def test_a_download_is_kept_and_not_done_again(official, tmp_path, monkeypatch):
    asked = []

    def copy(url: str, filepath: Path, *, hash_val: str, hash_type: str) -> None:
        asked.append((url, hash_val, hash_type))
        shutil.copy(official, filepath)

    monkeypatch.setattr("monai.apps.utils.download_url", copy)
    for _ in range(2):
        source = read("organamnist", root=tmp_path / "new", size=28, out=tmp_path / "out", download=True)
    assert source.rows.n_read == sum(COUNTS.values())
    info = medmnist.INFO["organamnist"]
    assert asked == [(info["url"], info["MD5"], "md5")]
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["organamnist.npz"]


def test_an_unofficial_file_is_marked_in_the_rows_and_on_the_card(tmp_path):
    path = write(tmp_path / "mine.npz", arrays())
    prepared = prepare(read("organamnist", unofficial=path, out=tmp_path / "out"), check="images")
    assert set(prepared.manifest.table["dataset"].to_pylist()) == {"organamnist-unofficial"}
    assert prepared.card["dataset"] == "organamnist-unofficial"
    notes = " ".join(prepared.card["notes"])
    assert f"NOT THE OFFICIAL FILE (MD5 {md5(path)})" in notes
    assert "The official file" not in notes
    assert "by CT volume" not in notes


@pytest.mark.parametrize("both", [True, False])
def test_it_needs_one_file(tmp_path, both):
    files = {"root": tmp_path, "unofficial": tmp_path / "x.npz"} if both else {}
    with pytest.raises(VividError, match=r"either --root, .* or --unofficial-file"):
        read("organamnist", out=tmp_path, **files)


def test_an_unofficial_file_that_is_not_there(tmp_path):
    with pytest.raises(VividError, match=r"gone\.npz: no such file"):
        read("organamnist", unofficial=tmp_path / "gone.npz", out=tmp_path / "out")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["killed", "full"])
def test_a_run_that_is_stopped_leaves_no_images_and_the_next_is_whole(official, tmp_path, monkeypatch, stop):
    save, saved = source_module._save, io.StringIO()

    def save_ten(*task: object) -> None:
        if len(saved.getvalue()) == 10:
            raise stop
        saved.write("x")
        save(*task)

    monkeypatch.setattr(source_module, "_save", save_ten)
    with pytest.raises(KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else VividError):
        read("organamnist", root=official.parent, size=28, out=tmp_path / "out", workers=1)
    assert list((tmp_path / "out" / "images").iterdir()) == []
    monkeypatch.undo()
    call_official(monkeypatch, official)
    left = tmp_path / "out" / "images" / f".organamnist-{md5(official)[:8]}.abcd_123.part"  # as SIGKILL leaves it
    left.mkdir(parents=True)
    (left / "junk.png").write_bytes(b"half")
    _remove_left.cache_clear()  # as another process
    source = read("organamnist", root=official.parent, size=28, out=tmp_path / "out")
    assert len(prepare(source, check="images").manifest) == sum(COUNTS.values())
    assert len(list((tmp_path / "out").rglob("*.png"))) == sum(COUNTS.values())


def test_files_of_another_content_have_another_folder(tmp_path):
    folders = set()
    for seed in (0, 1):
        source = read("organamnist", unofficial=write(tmp_path / "mine.npz", arrays(seed=seed)), out=tmp_path / "out")
        folders.add(source.rows.table["image"][0].split("/train/")[0])
    assert len(folders) == 2
    assert {f"images/{entry.name}" for entry in (tmp_path / "out" / "images").iterdir()} == folders


def test_a_folder_holds_at_most_a_thousand_images():
    assert image_path("train", 999) == "train/000/train-00999.png"
    assert image_path("train", 34560) == "train/034/train-34560.png"
