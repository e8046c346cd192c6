"""A radiograph-like image and small networks of ours on disk."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from vivid_monai.evaluation.encoders import Encoder, VividEncoder, load_encoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.modules import fingerprint, save_module
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


def kept(encoder: Encoder, path: Path) -> Encoder:
    """An encoder of another library, saved as one file of ours and loaded from it: it is the same in everything."""
    assert isinstance(encoder, VividEncoder)
    said = encoder.preprocess.to_dict()
    save_module(encoder.network, path, kind="library", pool=encoder.pool, preprocess=said)
    again = load_encoder(str(path))
    assert again.describe() == {**encoder.describe(), "source": str(path)}
    assert again.preprocess == encoder.preprocess
    images = torch.rand(2, *encoder.preprocess.shape)
    assert torch.equal(again(images), encoder(images))
    return again


def check_untrained(spec: str, path: Path, pool: str | None = None) -> None:
    """Fresh weights: of the network whose file ``path`` is, drawn by the seed alone, and the library's own."""
    torch.manual_seed(5)
    following = torch.rand(3)
    torch.manual_seed(5)
    trained, fresh = load_encoder(str(path)), load_encoder(f"untrained:{spec}", pool=pool, seed=7)
    assert torch.equal(torch.rand(3), following), "the global random state is left as it is"
    assert fresh.describe()["source"] == f"untrained:{spec} (seed 7)"
    assert fresh.network.config == trained.network.config
    assert (fresh.preprocess, fresh.pool) == (trained.preprocess, trained.pool)
    images = torch.rand(1, *fresh.preprocess.shape)
    assert not torch.equal(fresh(images), trained(images))
    same, other = (load_encoder(f"untrained:{spec}", pool=pool, seed=seed) for seed in (7, 8))
    assert same.fingerprint() == fresh.fingerprint() != other.fingerprint()
    assert load_encoder(f"untrained:{path}", seed=7).fingerprint() == fresh.fingerprint()
    torch.manual_seed(7)
    again = type(fresh.network)(**fresh.network.config)
    assert fingerprint(again) == fingerprint(fresh.network)
