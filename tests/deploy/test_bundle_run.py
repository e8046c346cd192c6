"""The workflows of a bundle, run from its folder without this package."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.deploy.alone import datalist, run_bundle
from tests.deploy.made_dicom import dicom
from tests.processes import run_module
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.postprocessing import TABLES, DecisionRules
from vivid_monai.deploy.predict import predict
from vivid_monai.metrics.masked import masked_auroc
from vivid_monai.ums.record import Record
from vivid_monai.ums.verify import verify


@pytest.fixture
def folder(bundle_folder, tmp_path):
    """A copy of the bundle to run in."""
    return shutil.copytree(bundle_folder, tmp_path / bundle_folder.name)


def test_inference_answers_as_the_training_repository_does(folder, finished, tmp_path):
    test = finished.manifest.select("test")
    images = tmp_path / "images"
    images.mkdir()
    for name in test.table["image"].to_pylist():
        shutil.copy(finished.manifest.image_root / name, images)
    photo = np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)
    Image.fromarray(photo).save(images / "zz-noise.png")
    (images / ".DS_Store").write_bytes(b"\0")
    os.mkfifo(images / "zz-pipe.png")
    (images / os.fsdecode(b"zz-r\xf6ntgen.png")).write_bytes((images / "zz-noise.png").read_bytes()[:90])
    dicom(images / "zz-us.dcm", Modality="US")
    run_bundle(folder, "inference.json", dataset_dir=images, output_dir=tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    accepted = finished.ood.accepts(finished.thumbnails["test"])
    assert accepted.mean() > 0.9
    said = {True: "answered", False: "not assessed"}
    others = {"zz-noise.png": "not assessed", "zz-pipe.png": "unreadable", "zz-r\\xf6ntgen.png": "unreadable"}
    others["zz-us.dcm"] = "not assessed"
    assert [row["status"] for row in rows] == [*(said[bool(one)] for one in accepted), *others.values()]
    assert [Path(row["image"]).name for row in rows[-4:]] == list(others)
    listed = {
        Path(row["image"]).name: row["reason"]
        for name in ("not_assessed.csv", "unreadable.csv")
        for row in csv.DictReader((tmp_path / "out" / name).open())
    }
    assert listed.keys() >= others.keys()
    done = predict(BundleModel(folder), find_inputs([images]), tmp_path / "predicted")
    assert [entry.status for entry in done.entries] == [row["status"] for row in rows]
    assert listed["zz-us.dcm"] == done.entries[-1].reason
    assert len(records) == accepted.sum()
    answers = DecisionRules.of_bundle(folder / "configs" / "metadata.json")
    expected = finished.probabilities(finished.test.x)[accepted]
    rows = [row for row in rows if row["status"] == "answered"]
    answered = [one.field for one in finished.calibrations if not one.unanswered]
    assert answered
    for record, row, probabilities in zip(records, rows, expected, strict=True):
        assert verify(record) == []
        findings = Record.from_dict(record).findings
        assert {field: finding.state for field, finding in findings.items()} == answers.states(probabilities)
        for field, probability in zip(finished.fields, probabilities, strict=True):
            score = findings[field].score
            assert (score is None) == (field not in answered)
            if score is not None:
                assert score == pytest.approx(probability, abs=2e-6)
                assert float(row[field]) == score
            assert row[f"{field}: state"] == (findings[field].state or "")


def test_an_empty_folder_is_one_line(folder, tmp_path):
    (tmp_path / "images").mkdir()
    command = ["run", "--config_file", "configs/inference.json", "--dataset_dir", tmp_path / "images"]
    done = run_module("monai.bundle", [*command, "--output_dir", tmp_path / "out"], cwd=folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"vivid: {tmp_path / 'images'}: there is no file to answer" in done.stderr
    assert not (tmp_path / "out").exists()


def test_images_of_which_none_is_answered_are_no_success(folder, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    command = ["run", "--config_file", "configs/inference.json", "--dataset_dir", tmp_path / "images"]
    done = run_module("monai.bundle", [*command, "--output_dir", tmp_path / "out"], cwd=folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert f"In {tmp_path / 'out'}: {', '.join(name for name in TABLES if name in written)}\n" in done.stdout
    assert "vivid: no image was answered; " in done.stderr


@pytest.mark.parametrize(
    ("configs", "options", "line"),
    [
        (["inference"], ["--device", "gpu"], "device is 'gpu'; it takes a device of PyTorch that is here: cpu"),
        (["inference"], ["--batch_size", "0"], "batch_size is 0; it takes a whole number from 1"),
        (["inference"], ["--dataset_di", "x"], "no option --dataset_di; did you mean --dataset_dir?"),
        (["train"], ["--epochs", "one"], "epochs is 'one'; it takes a whole number from 1"),
        (["train"], ["--run_id", "train"], "there is no workflow 'train'"),
        (["train", "evaluate"], ["--batch_size", "-1"], "batch_size is -1; it takes a whole number from 1"),
        (["inference"], ["--ckpt_path", "models/pointer.pt"], "models/pointer.pt: is a pointer of Git LFS"),
        (["train"], ["--ckpt_path", "models/pointer.pt"], "models/pointer.pt: is a pointer of Git LFS"),
    ],
)
def test_what_it_cannot_mean_is_one_line(folder, configs, options, line):
    (folder / "models" / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    files = [f"configs/{name}.json" for name in configs]
    done = run_module("monai.bundle", ["run", "--config_file", files, *options], cwd=folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (told,) = [one for one in done.stderr.splitlines() if one.startswith("vivid: ")]
    assert line in told


def test_from_another_folder_it_needs_bundle_root_alone(folder, tmp_path):
    command = ["run", "--config_file", folder / "configs" / "inference.json", "--bundle_root", folder]
    done = run_module("monai.bundle", [*command, "--dataset_dir", tmp_path / "nowhere"], cwd=tmp_path)
    (told,) = [one for one in done.stderr.splitlines() if one.startswith("vivid: ")]
    assert "nowhere" in told


def test_trains_further_and_evaluates(folder, finished, tmp_path):
    datalist(finished, tmp_path / "datalist.json")
    knobs = {"dataset_dir": tmp_path, "output_dir": tmp_path / "out", "batch_size": 64}
    told = run_bundle(folder, "train.json", "evaluate.json", **knobs)
    value = float(re.search(r"macro_auroc: ([\d.]+)", told)[1])
    assert value == pytest.approx(
        masked_auroc(finished.probabilities(finished.test.x), finished.test.states).mean(), abs=1e-4
    )
    told = run_bundle(folder, "train.json", epochs=2, learning_rate=0.001, **knobs)
    losses = [float(one) for one in re.findall(r"Loss: ([\d.]+)", told, flags=re.IGNORECASE)]
    assert losses
    before = torch.load(folder / "models" / "model.pt", weights_only=True)
    after = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert before.keys() == after.keys()
    assert not torch.equal(before["head.weight"], after["head.weight"])
    run_bundle(folder, "train.json", "evaluate.json", **knobs, ckpt_path=str(tmp_path / "out" / "model.pt"))


def test_trains_on_two_processes(folder, finished, tmp_path):
    datalist(finished, tmp_path / "datalist.json")
    configs = "['configs/train.json','configs/multi_gpu_train.json']"
    command = ["run", "--config_file", configs, "--dataset_dir", tmp_path, "--output_dir", tmp_path / "out"]
    done = run_module("monai.bundle", [*command, "--epochs", 1, "--batch_size", 64], cwd=folder, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert np.isfinite(torch.load(tmp_path / "out" / "model.pt", weights_only=True)["head.weight"]).all()
