"""A fine-tuned run becomes a bundle as a pretrained one does: PyTorch, ONNX and the bundle's own scripts agree."""

import json
from pathlib import Path

import monai.bundle
import numpy as np
import pytest
import torch

from tests.deploy.alone import check_every_way
from tests.evaluation.small import data_set, encoder
from vivid_monai.cli import main
from vivid_monai.deploy.calibration import load_calibrated
from vivid_monai.evaluation.encoders import load_encoder
from vivid_monai.metrics.masked import masked_auroc
from vivid_monai.networks.modules import save_module

ROOT = Path(__file__).parents[2]
KNOBS = {
    "pool": "mean",  # of the start encoder: an attentive head reads the fine-tuned one by SPD
    "batch_size": 32,
    "max_epochs": 2,
    "epoch_length": 30,
    "warmup_steps": 5,
    "learning_rate": 1e-3,
    "head_learning_rate": 1e-3,
    "rotate": 0.0,
    "translate": 0.0,
    "scale": 0.0,
    "n_examples": 0,
    "evaluation#n_resamples": 50,
    "run#5": "$None",  # the weights of the last step, whether or not they are the best
}


@pytest.fixture(scope="module", params=["linear", "attentive"])
def run(request, tmp_path_factory) -> Path:
    """A run that was fine-tuned from random weights, its data beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    data_set(folder / "data", n=600, splits=("train", "train", "val", "test"))
    start = encoder(1)
    save_module(start.network, folder / "start.safetensors", kind="vit", preprocess=start.preprocess.to_dict())
    places = {"start": "start.safetensors", "dataset_dir": "data", "output_dir": "run"}
    places = {name: str(folder / place) for name, place in places.items()} | {"bundle_root": str(folder)}
    config = [str(ROOT / "configs" / name) for name in ("train.json", "finetune.json")]
    options = {**KNOBS, **places, "head": request.param}
    monai.bundle.run(run_id="finetuning", config_file=config, logging_file=False, **options)
    return folder / "run"


def test_every_way_gives_the_calibrated_answers_of_the_fine_tuned_network(run, tmp_path):
    finished = load_calibrated(run)
    assert finished.name == "fine-tuned"
    first, last = (load_encoder(str(run / f"{name}_vit.safetensors")).network for name in ("initial", "pretrained"))
    assert not torch.equal(first.blocks[0].attn.qkv.weight, last.blocks[0].attn.qkv.weight)
    assert finished.results.get("auroc", "(macro)", "fine-tuned").value == pytest.approx(
        np.nanmean(masked_auroc(finished.probabilities(finished.test.x), finished.test.states)), abs=1e-6
    )
    assert {one.n_present for one in finished.calibrations} == set((finished.validation.states == 1).sum(0).tolist())

    bundle = tmp_path / "made_xray_classification"
    assert main(["bundle", str(run), "--out", str(bundle)]) == 0
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert "fine-tuned by VIVID-Med on made" in metadata["description"]
    check_every_way(finished, bundle, tmp_path)
