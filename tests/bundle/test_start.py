"""Pretraining of an encoder of another library, small: it is the backbone as it is, and killing changes nothing."""

import csv
import math
import shutil

import numpy as np
import pytest
import torch

import vivid_monai
from tests.bundle.conftest import bundle_command
from tests.bundle.test_errors import error_line
from tests.bundle.test_training import last_words
from tests.evaluation.encoders import saved_models
from tests.processes import kill_once, start_module
from vivid_monai.data.manifest import Manifest
from vivid_monai.evaluation.encoders import load_encoder
from vivid_monai.evaluation.results import Results, read_predictions
from vivid_monai.networks.classifier import BACKBONES
from vivid_monai.networks.modules import load_module

OVERLAY = "backbone/encoder.json"


def make_start(folder, name: str = "registers") -> str:
    """The folder of a small model of transformers, as its makers save it, of colour images of 32 pixels."""
    torch.manual_seed(3)
    for part in getattr(saved_models, name)():
        part.save_pretrained(folder / name)
    return f"transformers:{folder / name}"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    return folder, make_start(folder)


def test_an_encoder_of_another_library_is_taught_by_the_language_model(bundle, tmp_path, phantoms, start):
    done = bundle(OVERLAY, start=start[1], learning_rate=1e-3)
    assert done.returncode == 0, last_words(done)
    run, given = tmp_path / "run", load_encoder(start[1])
    encoder, first = load_encoder(str(run)), load_encoder(str(run / "initial_vit.safetensors"))
    assert first.fingerprint() == given.fingerprint()
    assert (encoder.kind, encoder.architecture) == (given.kind, given.architecture)
    assert encoder.preprocess == given.preprocess
    assert (encoder.preprocess.channels, encoder.pool) == (3, "cls")
    moved = {name: not torch.equal(one, given.state_dict()[name]) for name, one in encoder.state_dict().items()}
    assert {name for name, yes in moved.items() if not yes} == {"network.network.embeddings.mask_token"}
    assert load_module(run / "pretrained_vit.safetensors", BACKBONES).spd is not None

    results = Results.load(run / "results.json")
    assert list(results.encoders) == ["pretrained", "start"]
    assert results.encoders["start"]["encoder"]["fingerprint"] == given.fingerprint()
    shutil.copytree(run, tmp_path / "elsewhere")
    model, scores = vivid_monai.load(tmp_path / "elsewhere"), read_predictions(run / "predictions.csv")
    images = Manifest.load(phantoms / "manifest.parquet").select("test").table["image"].to_pylist()
    for image, row in list(zip(images, scores.scores["pretrained"][0], strict=True))[:3]:
        np.testing.assert_allclose(list(model(phantoms / image).values()), row, atol=1e-5)


def test_killed_and_resumed_equals_uninterrupted_without_the_files_it_started_from(bundle, tmp_path, phantoms):
    own = {"start": make_start(tmp_path), "pool": "spd"}
    done = bundle("teacher/none.json", OVERLAY, output_dir=tmp_path / "whole", **own)
    assert done.returncode == 0, last_words(done)
    knobs = {"dataset_dir": phantoms, "output_dir": tmp_path / "cut", "bundle_root": tmp_path, **own}
    command = bundle_command("teacher/none.json", OVERLAY, **knobs)
    process = start_module(command[1], command[2:], cwd=tmp_path)
    kill_once(process, lambda: any((tmp_path / "cut" / "checkpoints").glob("step_[2-7].pt")))
    shutil.rmtree(tmp_path / "registers")
    done = bundle("teacher/none.json", OVERLAY, output_dir=tmp_path / "cut", resume=True, **own)
    assert done.returncode == 0, last_words(done)
    whole, cut = (torch.load(tmp_path / folder / "model.pt", weights_only=True) for folder in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name
    tables = [(tmp_path / folder / "metrics.csv").read_text() for folder in ("whole", "cut")]
    assert tables[0] == tables[1]
    assert load_encoder(str(tmp_path / "cut")).pool == "spd"


@pytest.mark.parametrize("name", ["dinov3", "siglip_vision", "resnet"])
def test_tokens_of_any_network_are_read(bundle, tmp_path, name):
    done = bundle("teacher/none.json", OVERLAY, start=make_start(tmp_path, name), max_epochs=1, warmup_steps=1)
    assert done.returncode == 0, last_words(done)
    run = tmp_path / "run"
    assert load_encoder(str(run)).pool == ("cls" if name == "dinov3" else "mean")
    with (run / "curves.csv").open() as file:
        assert all(math.isfinite(float(row["train/nll"])) for row in csv.DictReader(file))


def test_what_cannot_be_meant_is_one_line(bundle, start):
    assert "no encoder to start from" in error_line(bundle(OVERLAY))
    assert "image_size=64 is not that of the start encoder" in error_line(
        bundle(OVERLAY, start=start[1], image_size=64)
    )
    assert "has no drop path" in error_line(bundle(OVERLAY, start=start[1], drop_path=0.1))
