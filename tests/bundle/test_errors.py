"""What users see when something is wrong: one line that says what and what to do, no traceback."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from vivid_monai.data.manifest import Manifest
from vivid_monai.networks.modules import save_module
from vivid_monai.networks.vit import ViT


def error_line(done) -> str:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("vivid: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    return lines[0]


@pytest.mark.parametrize(
    ("overlays", "knobs", "words"),
    [
        (["data/nih.json"], {"manifest": "nowhere/manifest.parquet"}, ["nowhere/manifest.parquet"]),
        ([], {"resume": True}, ["nothing to resume"]),
        ([], {"warmup_steps": 100}, ["warmup_steps=100", "8 steps"]),
        (["multi_gpu_train.json"], {}, ["torchrun"]),
        (["teacher/qwen2.5-1.5b.json"], {"teacher_path": "{tmp}/no-lm"}, ["no-lm"]),
        ([], {"vit_weights": "{tmp}/small.safetensors"}, ["small.safetensors"]),
    ],
    ids=["no manifest", "nothing to resume", "long warm-up", "no torchrun", "no causal LM", "other size"],
)
def test_one_clear_line(bundle, tmp_path, overlays, knobs, words):
    (tmp_path / "no-lm").mkdir()
    save_module(ViT(img_size=32, preset="tiny"), tmp_path / "small.safetensors", kind="vit", preprocess={"size": 32})
    knobs = {key: str(value).format(tmp=tmp_path) for key, value in knobs.items()}
    line = error_line(bundle(*overlays, **knobs))
    assert all(word in line for word in words), line


def test_unreadable_images_are_left_out_counted_and_listed(bundle, tmp_path, phantoms):
    mine = tmp_path / "mine"
    shutil.copytree(phantoms, mine)
    broken = sorted((mine / "images").rglob("*.png"))[::10]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    splits = {
        str(mine / row["image"]): row["split"] for row in Manifest.load(mine / "manifest.parquet").table.to_pylist()
    }
    assert {splits[str(path)] for path in broken} == {"train", "val", "test"}
    done = bundle("teacher/none.json", dataset_dir=mine)
    assert done.returncode == 0, done.stderr[-3000:]
    taught, evaluated = (listed(tmp_path / "run" / name) for name in ("skipped_in_training.csv", "skipped.csv"))
    assert taught
    assert {splits[path] for path in taught} == {"train"}
    assert evaluated == {str(path) for path in broken}
    assert f"{len(taught)} images could not be read and were left out" in done.stderr
    assert f"{len(broken)} images could not be read and are left out" in done.stdout


def listed(path: Path) -> set[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"] for row in csv.DictReader(file)}


def test_another_networks_checkpoint_is_refused(bundle, tmp_path):
    done = bundle("teacher/none.json", max_epochs=1, warmup_steps=1)
    assert done.returncode == 0, done.stderr[-3000:]
    line = error_line(bundle("teacher/none.json", max_epochs=1, warmup_steps=1, vit="tiny", resume=True))
    assert "checkpoint is of another pretrainer" in line
    assert "holds a run already" in error_line(bundle("teacher/none.json", max_epochs=1, warmup_steps=1))
    assert torch.load(tmp_path / "models" / "model.pt", weights_only=True)
