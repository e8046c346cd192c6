"""Bundles of version 1, whose network was a sequence of PyTorch's and MONAI's modules, are still read."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from safetensors.numpy import save_file

from tests.tolerance import float32
from vivid_monai.deploy.model import BundleModel, metadata_sha256
from vivid_monai.deploy.ood_score import WIDTH

pytestmark = pytest.mark.numeric

STORED = Path(__file__).with_name("version_1") / "bundle.json"  # configs of a bundle that version 1 wrote


@pytest.fixture
def old(tmp_path) -> tuple[Path, torch.nn.Module]:
    """A bundle as version 1 wrote it, with weights drawn anew, and its network built from its own config."""
    stored = json.loads(STORED.read_text())
    torch.manual_seed(0)
    network = torch.nn.Sequential(*ConfigParser({"layers": stored["layers"]}).get_parsed_content("layers")).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    (tmp_path / "models").mkdir()
    (tmp_path / "configs").mkdir()
    torch.save(network.state_dict(), tmp_path / "models" / "model.pt")
    settings = {"version": 1, "limit": 5.0, "accepted": 0.99, "n_images": 90, "n_patients": 80}
    arrays = {"location": np.zeros(WIDTH), "whitening": np.eye(WIDTH)}
    path = tmp_path / "models" / "assessment.safetensors"
    save_file(arrays, path, metadata={"vivid-assessment": json.dumps(settings)})
    metadata = stored["metadata"]
    files = ("models/model.pt", "models/assessment.safetensors")
    metadata["vivid"]["sha256"] = {one: hashlib.sha256((tmp_path / one).read_bytes()).hexdigest() for one in files}
    metadata["vivid"]["metadata_sha256"] = metadata_sha256(metadata)
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return tmp_path, network


def test_the_network_is_the_one_of_its_own_config(old):
    folder, network = old
    model = BundleModel(folder)
    images = torch.randn(3, *model.preprocess.shape)
    with torch.inference_mode():
        expected, got = network(images), model.classifier(images)
    assert expected.std() > 0.05
    tolerance = float32(depth=len(model.classifier.encoder.blocks), scale=expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def test_rules_and_tags_are_those_of_chests(old):
    model = BundleModel(old[0])
    assert model.label_space.name == "chexpert-12"
    assert model.trained_on["modality"] == ["DX"]
    assert model.trained_on["anatomy"] == ["chest"]
    assert model.trained_on["view"] == model.metadata["vivid"]["views"]
