"""A radiograph-like image and small networks of ours on disk."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from vivid_monai.evaluation.encoders import Encoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.modules import save_module
from vivid_monai.networks.vit import ViT
from vivid_monai.phantom import generate

PREPROCESS = Preprocess(size=32)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on disk is loaded without a network: any connection is an error that no loader expects."""

    def refuse(*_: object) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture(scope="session")
def radiograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey PNG, 151 rows and 192 columns."""
    path = tmp_path_factory.mktemp("radiograph") / "phantom.png"
    Image.fromarray(generate(0, 0, 192).image[20:171]).save(path)
    return path


@pytest.fixture(scope="session")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    torch.manual_seed(3)
    save_module(
        ViT(img_size=32, patch_size=8, preset="micro", drop_path=0.2), path, kind="vit", preprocess=PREPROCESS.to_dict()
    )
    return str(path)


def prepared(encoder: Encoder, path: Path, **more: object) -> torch.Tensor:
    """A batch of the one image, as the encoder wants it."""
    return encoder.preprocess.transform()({"image": path, **more})["image"].as_tensor()[None]
