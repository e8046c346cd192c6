"""MONAI's networks as encoders, from a plain state dict or with fresh weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import nn

from tests.evaluation.encoders.conftest import check_untrained, kept
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import load_encoder
from vivid_monai.images.preprocess import Preprocess


def made(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    network = getattr(nets, name)(spatial_dims=2, **options).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    return network


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("DenseNet121", {"in_channels": 1, "out_channels": 5}, 1),
        ("resnet18", {"n_input_channels": 3, "num_classes": 5}, 3),
        ("resnet10", {"n_input_channels": 1, "feed_forward": False, "bias_downsample": False}, 1),
    ],
)
def test_a_state_dict_gives_monais_features(tmp_path: Path, name: str, options: dict[str, Any], channels: int) -> None:
    network = made(name, **options)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    encoder = load_encoder(f"monai:{name}={tmp_path / 'model.pt'}")
    assert encoder.preprocess == Preprocess(size=224, channels=channels, mean=0.5, std=0.25)
    if name == "DenseNet121":
        network.class_layers.out = nn.Identity()
    else:
        network.fc = None
    images = torch.randn(1, channels, 224, 224)
    with torch.no_grad():
        assert torch.equal(encoder(images), network(images))
        cells = load_encoder(f"monai:{name}={tmp_path / 'model.pt'}", pool="mean")
        torch.testing.assert_close(cells(images), network(images), atol=1e-5, rtol=1e-5)
    assert (encoder.kind, encoder.pool, encoder.describe()["architecture"]) == ("monai", "pooled", name.lower())
    kept(encoder, tmp_path / "ours.safetensors")
    if channels == 1 and options.get("bias_downsample", True):
        check_untrained(f"monai:{name}", tmp_path / "ours.safetensors")


def test_the_tensors_are_those_of_the_network(tmp_path: Path) -> None:
    state = made("resnet18", n_input_channels=1, num_classes=5).state_dict()
    del state["layer3.0.conv2.weight"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(VividError, match=r"does not fit resnet18: Missing key.*layer3\.0\.conv2\.weight"):
        load_encoder(f"monai:resnet18={tmp_path / 'less.pt'}")
    with pytest.raises(VividError, match="does not fit DenseNet121"):
        load_encoder(f"monai:DenseNet121={tmp_path / 'less.pt'}")
    volumes = nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=2)
    torch.save(volumes.state_dict(), tmp_path / "volumes.pt")
    with pytest.raises(VividError, match=r"has shape \(64, 1, 7, 7, 7\); only networks of images"):
        load_encoder(f"monai:resnet10={tmp_path / 'volumes.pt'}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("monai:UNet=model.pt", "no such network; choose one of densenet121"),
        ("monai:resnet18", "monai:resnet18=FILE, or untrained:monai:resnet18"),
        ("monai:resnet18=nowhere.pt", r"nowhere\.pt: no such file"),
    ],
)
def test_what_names_no_network(spec: str, message: str) -> None:
    with pytest.raises(VividError, match=message):
        load_encoder(spec)
