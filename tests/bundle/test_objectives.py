"""Other objectives and other images through the same train.json: plain BCE, and CT volumes, with one overlay each."""

import csv

import monai.bundle
import nibabel
import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.bundle.conftest import ROOT, SMALL
from vivid_monai.data.manifest import Manifest
from vivid_monai.evaluation.results import Results
from vivid_monai.networks.classifier import BACKBONES
from vivid_monai.networks.modules import load_module

NAMES = ("initial", "pretrained")


def train(overlay, folder, **knobs):
    """Train in this process; returns the rows of the run's curves."""
    config = [str(ROOT / "configs" / "train.json"), str(ROOT / "configs" / overlay)]
    knobs = {**SMALL, "bundle_root": str(folder), "output_dir": str(folder / "run"), **knobs}
    monai.bundle.run(run_id="training", config_file=config, logging_file=False, **knobs)
    with (folder / "run" / "curves.csv").open() as file:
        return list(csv.DictReader(file))


def volumes(folder, n=24):
    """A manifest of small CT volumes: a body in air, with a dense nodule where the finding is present."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(n):
        present = i % 2
        hu = np.full((16, 18, 20), -1000.0)
        hu[2:14, 2:16, 2:18] = 40
        if present:
            hu[3:11, 3:11, 3:11] = 1000
        hu += rng.normal(0, 10, hu.shape)
        nibabel.Nifti1Image(hu.astype(np.int16), np.diag([4.0, 4, 4, 1])).to_filename(folder / "images" / f"{i}.nii")
        row = {"id": f"v{i}", "image": f"images/{i}.nii", "patient_id": f"p{i}", "dataset": "volumes", "modality": "CT"}
        row |= {"split": ("train", "train", "train", "train", "val", "val", "test", "test")[i % 8], "anatomy": "chest"}
        rows.append(row | {"labeller": "readers", "source": "human", "finding.Malignancy": present})
    manifest = Manifest(pa.Table.from_pylist(rows), label_space="lidc-malignancy", image_root=folder)
    return manifest.save(folder / "manifest.parquet")


def test_plain_bce_trains_through_the_same_config(tmp_path, phantoms):
    rows = train("objective/findings_bce.json", tmp_path, dataset_dir=str(phantoms), pool="spd")
    assert [row["step"] for row in rows] == ["4", "8"]
    assert {"train/loss", "train/bce", "train/grad_norm", "val/macro_auroc", "val/auroc/Edema"} <= rows[0].keys()
    results = Results.load(tmp_path / "run" / "results.json")
    assert list(results.encoders) == ["pretrained", "untrained"]
    first, saved = (load_module(tmp_path / "run" / f"{name}_vit.safetensors", BACKBONES) for name in NAMES)
    assert saved.pool == "spd"
    assert not torch.equal(first.spd.queries, saved.spd.queries), "the baseline is read out through SPD too"


def test_an_spd_that_is_not_trained_does_not_ship(tmp_path, phantoms):
    train("objective/findings_bce.json", tmp_path, dataset_dir=str(phantoms), pool="mean", max_epochs=1)
    saved = load_module(tmp_path / "run" / "pretrained_vit.safetensors", BACKBONES)
    assert (saved.pool, saved.spd) == ("mean", None)


@pytest.mark.parametrize("backbone", ["resnet", "vit"])
def test_volumes_train_through_the_same_config(tmp_path, backbone):
    manifest = volumes(tmp_path / "data")
    side = {"resnet": 16, "vit": 32}[backbone]
    small = {"backbone": backbone, "image_size": [side] * 3, "spacing": [80 / side] * 3, "min_positives": 1}
    steps = {"epoch_length": 30 if backbone == "vit" else 12, "warmup_steps": 2, "batch_size": 6, "rotate": 5.0}
    steps |= {"learning_rate": 1e-3, "projector_learning_rate": 3e-3, "pool": "mean", "save_every": 100}
    rows = train("data/volumes.json", tmp_path, manifest=str(manifest), **small, **steps)
    losses = [float(row["train/bce"]) for row in rows]
    assert losses[-1] < losses[0]
    assert losses[-1] < 0.69, "no better than a coin"
    saved = load_module(tmp_path / "run" / "pretrained_vit.safetensors", BACKBONES)
    assert type(saved.module) is BACKBONES[backbone]
    assert saved.preprocess["kind"] == "volume"
    tokens = saved.module(torch.zeros(1, 1, side, side, side))
    assert tokens.shape[1:] == {"resnet": (1, 512), "vit": (9, 128)}[backbone]
