"""A bundle whose network is another library's."""

import json

import numpy as np
import pytest
import torch
import transformers as hf

from tests.deploy.alone import alone
from tests.deploy.conftest import make_run
from vivid_monai.deploy.bundle import build_bundle
from vivid_monai.deploy.calibration import load_calibrated
from vivid_monai.deploy.export import export_torchscript
from vivid_monai.deploy.model import BundleModel
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import VividEncoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.library import LibraryBackbone


def encoder(seed: int) -> VividEncoder:
    """A ViT of transformers with random weights, for images of 16 pixels in three channels."""
    config = hf.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    preprocess = Preprocess(size=16, channels=3, mean=0.5, std=0.25)
    model = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = LibraryBackbone(library="transformers", model=model, image_shape=preprocess.shape)
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return VividEncoder(backbone, preprocess, source=f"hf-{seed}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return load_calibrated(make_run(tmp_path_factory.mktemp("finished"), n=240, make=encoder, kind="library"))


@pytest.mark.parametrize("onnx", [None, "float32"])
def test_it_answers_without_this_package_and_without_the_weights_of_the_library(finished, tmp_path, onnx):
    folder = build_bundle(finished, tmp_path / "made_xray_vit_classification", onnx=onnx)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["required_packages_version"]["transformers"] == hf.__version__
    assert "ViTModel" in metadata["name"]
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = finished.classifier(images)
    probabilities, _ = BundleModel(folder)(images)
    np.testing.assert_allclose(probabilities, expected.sigmoid().numpy(), atol=1e-5)
    torch.save(images, tmp_path / "images.pt")
    code = f"""
import torch
from monai.bundle import ConfigParser
parser = ConfigParser(); parser.read_config("configs/inference.json")
network = parser.get_parsed_content("network_def").eval()
network.load_state_dict(torch.load("models/model.pt"))
with torch.inference_mode():
    torch.save(network(torch.load({str(tmp_path / "images.pt")!r})), {str(tmp_path / "logits.pt")!r})
"""
    alone(code, cwd=folder)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


def test_what_cannot_be_exported_says_so(finished, tmp_path):
    with pytest.raises(VividError, match=r"ViTModel of transformers cannot be .* TorchScript; give --to onnx"):
        export_torchscript(
            finished.classifier, tmp_path / "a.ts", preprocess=finished.preprocess, fields=finished.fields
        )
