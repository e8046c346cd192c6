"""The main job from end to end, small: what it leaves behind, and that killing it changes nothing."""

import csv
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from tests.bundle.conftest import ROOT, SMALL, bundle_command
from tests.processes import kill_once, start_module
from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.manifest import Manifest
from vivid_monai.evaluation.examples import Examples
from vivid_monai.evaluation.results import Results, read_predictions
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import BACKBONES
from vivid_monai.networks.modules import load_module


def last_words(done: subprocess.CompletedProcess) -> str:
    return (done.stdout + done.stderr)[-3000:]


def test_leaves_a_working_classifier_and_everything_that_tells_of_it(bundle, tmp_path, phantoms):
    done = bundle(publish="true")
    assert done.returncode == 0, last_words(done)
    run = tmp_path / "run"
    assert f"also in {tmp_path / 'models'}" in done.stdout
    saved = load_module(run / "pretrained_vit.safetensors", BACKBONES)
    vit = saved.module
    assert saved.preprocess["size"] == 32
    assert len(saved.fields) == 12

    config = ConfigParser()
    config.read_config(str(ROOT / "configs" / "train.json"))
    config.update(SMALL)
    network = config.get_parsed_content("network_def")
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    network.load_state_dict(weights, strict=True)
    assert not any("teacher" in name or "projector" in name for name in weights), "the LLM and projector stay behind"
    assert saved.pool == "cls+mean"
    for name, tensor in vit.state_dict().items():
        assert torch.equal(tensor, weights[f"encoder.{name}"])
    first = load_module(run / "initial_vit.safetensors", BACKBONES)
    assert first.spd.config == saved.spd.config
    assert not torch.equal(first.spd.queries, saved.spd.queries), "SPD was trained, and its first weights kept"

    results = Results.load(run / "results.json")
    assert list(results.encoders) == ["pretrained", "untrained"]
    assert results.run["command"].startswith("python -m monai.bundle run training --config_file ")
    predictions = read_predictions(run / "predictions.csv")
    assert len(predictions.ids) == results.test["n_images"]
    report = (run / "report.html").read_text()
    assert f"{results.get('auroc', '(macro)', 'pretrained').value:.3f}" in report
    assert results.encoders["untrained"]["encoder"]["pool"] == "cls+mean", "the untrained one is read out so too"
    assert Examples.load(run / "examples.npz").maps.shape[1] == 4
    # The head of the shipped network says what the table of predictions says.
    items = ImageDataset(
        Manifest.load(phantoms / "manifest.parquet").select("test").items(results.fields),
        Preprocess.from_dict(saved.preprocess),
    )
    with torch.no_grad():
        shipped = torch.sigmoid(network.eval()(torch.stack([item["image"] for item in items])))
    np.testing.assert_allclose(shipped.numpy(), predictions.scores["pretrained"][0], atol=1e-4)
    image = torch.randn(2, 1, 32, 32)
    assert network.eval()(image).shape == (2, 12)
    assert network.head.weight.abs().sum() > 0

    assert json.loads((run / "config.json").read_text())["image_size"] == 32, "overrides are in the resolved config"
    with (run / "curves.csv").open() as file:
        assert [int(float(row["step"])) for row in csv.DictReader(file)] == [4, 8]
    assert (run / "progress.png").stat().st_size > 5000
    assert list((run / "tensorboard").iterdir())
    assert not any("model.layers" in name for path in (run / "checkpoints").iterdir()
                   for name in torch.load(path, weights_only=True)["network"])  # fmt: skip
    assert "macro AUROC" in done.stdout
    assert "Next:" in done.stdout


def test_killed_and_resumed_equals_uninterrupted(bundle, tmp_path, phantoms):
    done = bundle("teacher/none.json", output_dir=tmp_path / "whole")
    assert done.returncode == 0, last_words(done)

    knobs = {"dataset_dir": phantoms, "output_dir": tmp_path / "cut", "bundle_root": tmp_path}
    command = bundle_command("teacher/none.json", **knobs)
    process = start_module(command[1], command[2:], cwd=tmp_path)
    kill_once(process, lambda: any((tmp_path / "cut" / "checkpoints").glob("step_[2-7].pt")))
    assert not (tmp_path / "cut" / "pretrained_vit.safetensors").exists()

    done = bundle("teacher/none.json", output_dir=tmp_path / "cut", resume=True)
    assert done.returncode == 0, last_words(done)
    first, second = (
        load_module(tmp_path / folder / "pretrained_vit.safetensors", BACKBONES).module for folder in ("whole", "cut")
    )
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    tables = [(tmp_path / folder / "curves.csv").read_text() for folder in ("whole", "cut")]
    assert tables[0] == tables[1]


def test_two_processes_train_and_close_once(bundle, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    done = bundle("teacher/none.json", "multi_gpu_train.json", launcher=launcher, max_epochs=1, warmup_steps=1)
    assert done.returncode == 0, last_words(done)
    assert done.stdout.count("test AUROC") == 1
    assert (tmp_path / "run" / "pretrained_vit.safetensors").exists()


@pytest.mark.parametrize(
    ("overlay", "knobs"),
    [
        ("teacher/random.json", {"layout": "slots", "teacher_layers": 1}),
        ("teacher/tiny.json", {"layout": "published", "pass_patches": True}),
        ("teacher/tiny.json", {"layout": "phrases", "teacher_bits": 8, "optimizer": "muon", "min_asked": "all"}),
    ],
)
def test_other_teachers_and_layouts_train(bundle, overlay, knobs):
    done = bundle(overlay, max_epochs=1, warmup_steps=1, **knobs)
    assert done.returncode == 0, last_words(done)


def test_the_papers_recipe_keeps_decoded_images_on_disk_for_the_next_run(bundle, tmp_path, phantoms):
    shutil.copytree(phantoms, tmp_path / "phantoms")
    small = {"vit": "micro", "max_epochs": 1, "warmup_steps": 1, "dataset_dir": tmp_path / "phantoms"}
    for run in ("first", "second"):
        done = bundle("recipe/paper.json", **small, num_workers=1, compile=run == "second", output_dir=tmp_path / run)
        assert done.returncode == 0, last_words(done)
    entries = [path for path in (tmp_path / "phantoms" / "pixels").iterdir() if path.is_dir()]
    assert len(entries) == 3, "training, validation and test images"
    assert "images into the cache" not in done.stderr


def test_two_processes_share_one_teacher(bundle, tmp_path):
    small = {"max_epochs": 1, "warmup_steps": 1}
    done = bundle("multi_gpu_train.json", ranks=2, shard_teacher=True, **small)
    assert done.returncode == 0, last_words(done)
    refused = bundle(shard_teacher=True, output_dir=tmp_path / "alone", **small)
    assert refused.returncode != 0
    assert "torchrun" in last_words(refused)


def test_mlflow_keeps_the_run(bundle, tmp_path):
    pytest.importorskip("mlflow")
    done = bundle("teacher/none.json", output_dir=None, tracking="mlflow", max_epochs=1, warmup_steps=1)
    assert done.returncode == 0, last_words(done)
    assert [path.name for path in (tmp_path / "runs" / "phantom").iterdir()] == ["001"]
    assert list(tmp_path.rglob("mlruns*")), "tracking left nothing"
