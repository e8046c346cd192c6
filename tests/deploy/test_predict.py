"""Predictions: the scores of the training repository, whatever the files; nothing lost, nothing done twice."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.deploy.made_dicom import dicom
from tests.processes import kill_once, run_module, start_module
from vivid_monai.cli import main
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.postprocessing import TABLES
from vivid_monai.deploy.predict import predict
from vivid_monai.errors import VividError
from vivid_monai.ums.record import Record
from vivid_monai.ums.verify import verify


@pytest.fixture(scope="session", params=["onnx", "torch"])
def model(bundle_folder, request):
    """The bundle's model."""
    return BundleModel(bundle_folder, runtime=request.param)


@pytest.fixture(scope="session")
def chosen(finished) -> list[int]:
    """Positions of six test images that are not among the one in a hundred that is refused."""
    return np.flatnonzero(finished.ood.accepts(finished.thumbnails["test"]))[:6].tolist()


@pytest.fixture(scope="session")
def pixels(finished, chosen) -> np.ndarray:
    """The first of them."""
    test = finished.manifest.select("test")
    with Image.open(finished.manifest.image_root / test.table["image"][chosen[0]].as_py()) as image:
        return np.asarray(image)


@pytest.fixture
def images(tmp_path, finished, chosen, pixels) -> Path:
    """A folder of mixed files: test images of the run, the first as DICOM, a lateral, a blank, a text, a cut PNG."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = finished.manifest.select("test").table["image"].to_pylist()
    for i in chosen:
        shutil.copy(finished.manifest.image_root / names[i], folder / Path(names[i]).name)
    dicom(folder / "m1.dcm", inverted=True, pixels=pixels)
    dicom(folder / "m2.dcm", pixels=pixels)
    dicom(folder / "x-lateral.dcm", ViewPosition="LL", pixels=pixels)
    Image.new("L", (40, 25), 128).save(folder / "x-blank.png")
    (folder / "x-notes.txt").write_text("no image")
    (folder / "x-cut.png").write_bytes((folder / "m2.dcm").read_bytes()[:50])
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_mixed_files_are_answered_or_listed(model, images, finished, chosen, tmp_path):
    done = predict(model, find_inputs([images]), tmp_path / "out", batch_size=3)
    assert done.counts() == {"answered": 8, "not assessed": 2, "unreadable": 2}
    table = {Path(row["image"]).name: row for row in rows(tmp_path / "out" / "predictions.csv")}
    assert list(table) == sorted(path.name for path in images.iterdir())
    expected = finished.probabilities(finished.test.x)[chosen]
    answered = [one.field for one in finished.calibrations if not one.unanswered]
    names = [name for name in table if name[0].isdigit()]
    for name, probabilities in zip(names, expected, strict=True):
        got = [float(table[name][field]) for field in answered]
        wanted = [p for p, field in zip(probabilities, finished.fields, strict=True) if field in answered]
        np.testing.assert_allclose(got, wanted, rtol=0, atol={"torch": 2e-6, "onnx": 1e-5}[model.runtime])
    reasons = {Path(row["image"]).name: row["reason"] for row in rows(tmp_path / "out" / "not_assessed.csv")}
    assert "lateral" in reasons["x-lateral.dcm"]
    assert reasons["x-blank.png"].startswith("unlike the images that the model was trained on: distance ")
    unreadable = {Path(row["image"]).name for row in rows(tmp_path / "out" / "unreadable.csv")}
    assert unreadable == {"x-notes.txt", "x-cut.png"}
    assert not any(table["x-blank.png"][field] for field in finished.fields)


def test_png_and_both_photometric_interpretations_get_one_answer(model, images, tmp_path):
    png = sorted(images.glob("[0-9]*.png"))[0]
    predict(model, find_inputs([png, images / "m1.dcm", images / "m2.dcm"]), tmp_path / "out")
    first, *others = (list(row.values())[1:] for row in rows(tmp_path / "out" / "predictions.csv"))
    assert first[0] == "answered"
    assert others == [first, first]


def test_a_slice_in_nifti_is_answered_as_its_png_and_a_volume_is_not(model, pixels, tmp_path):
    scaled = np.interp(pixels, (pixels.min(), pixels.max()), (0, 255)).round().astype(np.uint8)  # as read from NIfTI
    Image.fromarray(scaled).save(tmp_path / "a.png")
    stored = scaled.T[:, :, None]  # columns to the left, rows to the back: LPS
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "b.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.repeat(stored, 3, 2), np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "c.nii")
    done = predict(model, find_inputs([tmp_path]), tmp_path / "out")
    png, single, volume = done.entries
    assert single.probabilities == png.probabilities
    assert (single.status, single.reason) == (png.status, png.reason)
    assert volume.status == "unreadable"
    assert "a volume of 3 axial slices" in volume.reason


def test_every_record_verifies_and_names_no_patient(model, images, tmp_path):
    predict(model, find_inputs([images]), tmp_path / "out")
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert len(lines) == 8
    for line in lines:
        record = Record.from_json(line)
        assert verify(record) == []
        assert record.provenance.source == "model"
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"Doe" not in written
    assert b"4711" not in written


def test_overlays_and_reports_on_request(model, images, tmp_path):
    pytest.importorskip("highdicom")
    out = tmp_path / "out"
    done = predict(model, find_inputs([images]), out, overlays=True, reports=True, batch_size=5)
    table = {Path(row["image"]).name: row for row in rows(out / "predictions.csv")}
    for entry in done.entries:
        row = table[Path(entry.image.path).name]
        assert bool(row["overlay"]) == (row["status"] == "answered")
        assert bool(row["report"]) == (entry.image.path.endswith(".dcm"))
        for file in filter(None, (row["overlay"], row["report"])):
            assert (out / file).is_file()
        if row["overlay"] and row["report"]:
            assert Path(row["overlay"]).stem == Path(row["report"]).stem
    assert len(list((out / "overlays").iterdir())) == 8
    lateral = (out / table["x-lateral.dcm"]["report"]).read_bytes()
    assert b"lateral" in lateral
    answered = pydicom.dcmread(out / table["m1.dcm"]["report"])
    source = pydicom.dcmread(images / "m1.dcm")
    assert (answered.PatientID, answered.StudyInstanceUID) == ("4711", source.StudyInstanceUID)
    with pytest.raises(VividError, match="other settings"):
        predict(model, find_inputs([images]), out)


def test_an_image_that_no_report_can_refer_to_is_still_answered(model, pixels, tmp_path):
    pytest.importorskip("highdicom")
    path = dicom(tmp_path / "a.dcm", StudyInstanceUID="", pixels=pixels)
    (entry,) = predict(model, find_inputs([Path(path)]), tmp_path / "out", reports=True).entries
    assert entry.status == "answered"
    assert "no report" in entry.reason
    assert "4711" not in entry.reason
    assert rows(tmp_path / "out" / "predictions.csv")[0]["reason"] == entry.reason


def test_goes_on_where_it_was(model, images, tmp_path, monkeypatch):
    inputs, out = find_inputs([images]), tmp_path / "out"
    seen = []
    call = BundleModel.__call__

    def counted(self, batch):
        seen.append(len(batch))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return call(self, batch)

    monkeypatch.setattr(BundleModel, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        predict(model, inputs, out, batch_size=2)
    assert len(rows(out / "predictions.csv")) == 4
    with (out / "journal.jsonl").open("a") as file:
        file.write('{"image": {"path": "cut o')  # as a kill leaves it
    done = predict(model, inputs, out, batch_size=2)
    assert (done.resumed, len(done.entries)) == (4, 12)
    whole = predict(model, inputs, tmp_path / "whole", batch_size=2)
    assert done.entries == whole.entries
    for name in ("predictions.csv", "records.jsonl", "unreadable.csv", "not_assessed.csv"):
        assert (out / name).read_text() == (tmp_path / "whole" / name).read_text()
    before = len(seen)
    assert predict(model, inputs, out).resumed == 12
    assert len(seen) == before


def test_a_changed_file_is_answered_again(model, images, tmp_path):
    target = images / "x-cut.png"
    assert predict(model, find_inputs([target]), tmp_path / "out").counts() == {"unreadable": 1}
    shutil.copy(images / "m2.dcm", target)
    done = predict(model, find_inputs([target]), tmp_path / "out")
    assert (done.counts(), done.resumed) == ({"answered": 1}, 0)
    assert not (tmp_path / "out" / "unreadable.csv").exists()


def test_answers_of_two_models_are_not_mixed(model, images, tmp_path):
    predict(model, find_inputs([images / "m1.dcm"]), tmp_path / "out")
    path = tmp_path / "out" / "journal.jsonl"
    lines = path.read_text().splitlines()
    other = json.loads(lines[0]) | {"weights": "0" * 64}
    path.write_text("\n".join([json.dumps(other), *lines[1:]]) + "\n")
    with pytest.raises(VividError, match="answers of another model"):
        predict(model, find_inputs([images]), tmp_path / "out")
    path.write_text(lines[0] + "\nbroken\n" + lines[1] + "\n")
    with pytest.raises(VividError, match=r"journal\.jsonl:2: is damaged"):
        predict(model, find_inputs([images]), tmp_path / "out")


def test_killed_in_the_middle_nothing_is_done_twice(bundle_folder, images, pixels, tmp_path):
    for i in range(488):
        dicom(images / f"z{i:03d}.dcm", seed=i, pixels=pixels)
    command = ["predict", images, "--bundle", bundle_folder, "--out", tmp_path / "out", "--batch-size", 4]
    journal = tmp_path / "out" / "journal.jsonl"
    process = start_module("vivid_monai.cli", command, cwd=tmp_path)
    kill_once(process, lambda: journal.exists() and journal.read_text().count("\n") > 20, timeout=120)
    done = journal.read_text().count("\n") - 1
    assert done <= len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) <= done + 1
    (tmp_path / "out" / ".predictions.csv.abcd_123.part").write_text("cut o")
    finished = run_module("vivid_monai.cli", command, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert f"500 files: 496 answered, 2 not assessed, 2 unreadable; {done} of them before" in finished.stdout
    entries = [json.loads(line)["image"]["path"] for line in journal.read_text().splitlines()[1:]]
    assert len(entries) == len(set(entries)) == 500
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*TABLES, "journal.jsonl"])


def test_interrupted_with_workers_it_is_one_line(bundle_folder, images, pixels, tmp_path):
    for i in range(200):
        dicom(images / f"z{i:03d}.dcm", seed=i, pixels=pixels)
    command = ["predict", images, "--bundle", bundle_folder, "--out", tmp_path / "out", "--batch-size", 1]
    journal = tmp_path / "out" / "journal.jsonl"
    process = start_module("vivid_monai.cli", [*command, "--workers", 1], cwd=tmp_path, stderr=tmp_path / "told")
    kill_once(process, lambda: journal.exists() and journal.read_text().count("\n") > 3, number=signal.SIGINT)
    told = (tmp_path / "told").read_text()
    assert process.exitcode == 130, told
    assert "Traceback" not in told
    assert "vivid predict: interrupted" in told
    assert journal.read_text().count("\n") == len((tmp_path / "out" / "predictions.csv").read_text().splitlines())


def test_the_command_tells_what_it_did(bundle_folder, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(images), "--bundle", str(bundle_folder), "--out", str(out), "--workers", "1"]) == 0
    told = capsys.readouterr().out
    assert "12 files: 8 answered, 2 not assessed, 2 unreadable" in told
    assert "not_assessed.csv" in told
    assert main(["predict", str(images / "x-notes.txt"), "--bundle", str(bundle_folder), "--out", str(out)]) == 1


def test_names_in_any_bytes_are_answered_escaped_and_resumed(model, images, tmp_path):
    odd = os.fsencode(tmp_path) + b"/r\xf6ntgen\n.dcm"
    shutil.copy(images / "m2.dcm", os.fsdecode(odd))
    (tmp_path / "b.png").symlink_to("/nowhere/x.png")
    shutil.copy(images / "x-notes.txt", os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    inputs, out = (
        find_inputs(path for path in tmp_path.iterdir() if path.is_file() or path.is_symlink()),
        tmp_path / "out",
    )
    assert predict(model, inputs, out).counts() == {"answered": 1, "unreadable": 2}
    assert predict(model, inputs, out).resumed == 3
    by_name = {Path(row["image"]).name: row for row in rows(out / "predictions.csv")}
    assert by_name["r\\xf6ntgen\\n.dcm"]["status"] == "answered"
    assert set(by_name) == {"r\\xf6ntgen\\n.dcm", "b.png", "\\xff.txt"}
    (record,) = (json.loads(line) for line in (out / "records.jsonl").read_text().splitlines())
    assert record["id"].endswith("/r\\xf6ntgen\\n.dcm")
    assert verify(record) == []
    assert {Path(row["image"]).name for row in rows(out / "unreadable.csv")} == {"b.png", "\\xff.txt"}


def test_an_override_is_written_into_the_records_and_is_a_setting(model, pixels, tmp_path):
    path = dicom(tmp_path / "a.dcm", Modality="US", pixels=pixels)
    assert predict(model, find_inputs([path]), tmp_path / "no").counts() == {"not assessed": 1}
    done = predict(model, find_inputs([path]), tmp_path / "out", accept=["modality=US"])
    assert (done.counts(), done.entries[0].accepted) == ({"answered": 1}, "modality")
    (record,) = (json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines())
    assert record["provenance"]["labeller_version"] == f"{model.version}+accept:modality"
    assert rows(tmp_path / "out" / "predictions.csv")[0]["accepted"] == "modality"
    with pytest.raises(VividError, match="other settings"):
        predict(model, find_inputs([path]), tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch-size", "0"], "--batch-size must be 1 or more, not 0"),
        (["--workers", "-1"], "--workers must be 0 or more, not -1"),
        ([""], "a path is empty"),
        (["--out", ""], "--out is empty"),
        (["--accept", "vew"], "did you mean view"),
    ],
)
def test_a_bad_word_is_one_line_and_nothing_is_written(
    bundle_folder, images, tmp_path, capsys, words, told, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["predict", str(images), *words, "--bundle", str(bundle_folder)]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert "\n" not in error
    assert sorted(tmp_path.iterdir()) == before


def test_its_own_answers_are_no_inputs_and_termination_leaves_tables(
    bundle_folder, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(images)
    call, seen = BundleModel.__call__, []

    def terminated(self, batch):
        seen.append(batch)
        if len(seen) == 3:  # the first is that of a blank image
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, batch)

    monkeypatch.setattr(BundleModel, "__call__", terminated)
    command = ["predict", ".", "--bundle", str(bundle_folder), "--overlays", "--batch-size", "3"]
    assert main(command) == 130
    assert "vivid predict: interrupted" in capsys.readouterr().err
    assert len(rows(images / "predictions" / "predictions.csv")) == 3
    assert not list((images / "predictions").rglob("*.part"))
    for _ in range(2):
        assert main(command) == 0
        assert "12 files: 8 answered, 2 not assessed, 2 unreadable" in capsys.readouterr().out


def test_a_folder_that_cannot_be_entered_is_listed_and_no_success(bundle_folder, images, tmp_path, capsys, monkeypatch):
    listdir = os.listdir
    (images / "closed").mkdir()

    def refused(path):  # root may enter every folder
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refused)
    command = ["predict", str(images), "--bundle", str(bundle_folder), "--out", str(tmp_path / "out")]
    for _ in range(2):
        assert main(command) == 1
        assert "1 folders or files could not be entered" in capsys.readouterr().out
    listed = {Path(row["image"]).name: row["reason"] for row in rows(tmp_path / "out" / "unreadable.csv")}
    assert "cannot be entered (Permission denied)" in listed["closed"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "models" / "model.onnx").unlink(), "cannot be read"),
        (lambda folder: (folder / "models" / "model.onnx").write_bytes(b"PK\x03\x04"), "is not the file that"),
        (lambda folder: (folder / "models" / "assessment.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "models" / "assessment.safetensors").write_bytes(b""), "is not the file that"),
        (lambda folder: (folder / "configs" / "metadata.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "configs" / "metadata.json").write_text("{}"), "none of `vivid bundle`"),
        (lambda folder: _edited(folder), "has changed since the bundle was built"),
        (lambda folder: _without(folder, "preprocess"), "is not a bundle of"),
        (lambda folder: _without(folder, "views"), "is not a bundle of"),
        (
            lambda folder: _with_answers(folder, {"no_finding": ["Edema"]}),
            "is not a bundle",
        ),
        (lambda folder: _with_answers(folder, {"fields": []}), "is not a bundle of"),
        (lambda folder: _with_answers(folder, {"modality": "XX"}), "break the rules of records: 'XX' is not one of"),
    ],
)
def test_a_damaged_bundle_is_one_clear_line(bundle_folder, tmp_path, capsys, change, told):
    folder = shutil.copytree(bundle_folder, tmp_path / bundle_folder.name)
    change(folder)
    assert main(["predict", str(tmp_path), "--bundle", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert "\n" not in error


def _edited(folder: Path) -> None:
    path = folder / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    next(one for one in metadata["answers"]["fields"] if one["present_from"])["present_from"] = 0.999
    path.write_text(json.dumps(metadata))


def _with_answers(folder: Path, change: dict) -> None:
    path = folder / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["answers"] |= change
    metadata["vivid"]["metadata_sha256"] = None
    path.write_text(json.dumps(metadata))


def _without(folder: Path, key: str) -> None:
    path = folder / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["vivid"][key]
    metadata["vivid"]["metadata_sha256"] = None
    path.write_text(json.dumps(metadata))
