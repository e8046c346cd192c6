"""TorchXRayVision's networks as encoders; run where it is installed. The files are made here in its own layouts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.encoders.conftest import check_untrained, prepared
from tests.evaluation.encoders.conftest import kept as kept_in_ours
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import load_encoder

xrv = pytest.importorskip("torchxrayvision")

DENSENET, RESNET = "densenet121-res224-chex", "resnet50-res512-all"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where TorchXRayVision looks for its files."""
    monkeypatch.setattr(xrv.utils, "get_cache_dir", lambda: str(tmp_path))
    return tmp_path


def place(name: str, folder: Path) -> Path:
    return folder / Path(xrv.models.model_urls[name]["weights_url"]).name


def densenet() -> Any:
    torch.manual_seed(0)
    network = xrv.models.DenseNet(num_classes=len(xrv.models.model_urls[DENSENET]["labels"]))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    return network.eval()


@pytest.fixture
def state(tmp_path: Path) -> tuple[Any, str]:
    """A DenseNet, and the spec of the file that the error's command would write of it."""
    network = densenet()
    network.op_threshs = torch.full((18,), 0.5)
    torch.save(network.state_dict(), tmp_path / "dense.pt")
    return network, f"torchxrayvision:{DENSENET}={tmp_path / 'dense.pt'}"


def test_a_densenet_gives_the_librarys_features(state: tuple[Any, str], radiograph: Path) -> None:
    network, spec = state
    encoder = load_encoder(spec)
    images = prepared(encoder, radiograph)
    assert images.shape == (1, 1, 224, 224)
    with torch.no_grad():
        expected = network.features2(images)
    assert torch.equal(encoder(images), expected)
    described = encoder.describe()
    assert (described["pool"], described["dim"], described["architecture"]) == ("pooled", 1024, "densenet121")
    assert described["n_parameters"] == sum(p.numel() for p in network.features.parameters())


def test_values_have_the_librarys_range(state: tuple[Any, str], radiograph: Path) -> None:
    images = prepared(load_encoder(state[1]), radiograph)
    with Image.open(radiograph) as image:
        pixels = np.asarray(image.convert("L"))
    own = xrv.datasets.XRayResizer(224)(xrv.datasets.XRayCenterCrop()(xrv.datasets.normalize(pixels, 255)[None]))
    assert abs(images).max() <= 1024
    # It cuts before it resizes, with skimage; this is one part in a hundred of the range apart.
    assert np.abs(images[0, 0].numpy() - own[0]).mean() < 20
    assert np.corrcoef(images[0, 0].numpy().ravel(), own[0].ravel())[0, 1] > 0.995


def test_a_published_densenet_is_refused_with_the_way_to_its_tensors(kept: Path) -> None:
    torch.save(densenet(), place(DENSENET, kept))
    with pytest.raises(VividError, match=r"could run code.*DenseNet\(weights='densenet121-res224-chex'"):
        load_encoder(f"torchxrayvision:{DENSENET}")
    with pytest.raises(VividError, match="cannot be read as plain tensors"):
        load_encoder(f"torchxrayvision:{DENSENET}={place(DENSENET, kept)}")


def test_a_resnet_of_512_pixels_is_read_from_its_state(kept: Path) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    network = resnet50(num_classes=len(xrv.models.model_urls[RESNET]["labels"]))
    network.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    torch.save(network.state_dict(), place(RESNET, kept))
    encoder = load_encoder(f"torchxrayvision:{RESNET}")
    assert (encoder.pool, encoder.preprocess.size, encoder.dim) == ("pooled", 512, 2048)
    images = torch.rand(1, 1, 512, 512) * 2048 - 1024
    with torch.no_grad():
        expected = xrv.models.ResNet(RESNET).features(images)
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"features.conv0.weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(VividError, match="cannot be read as plain tensors"):
        load_encoder(f"torchxrayvision:{DENSENET}={tmp_path / 'trap.pt'}")
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    weights = densenet().state_dict()
    del weights["features.denseblock3.denselayer5.conv2.weight"]
    torch.save(weights, tmp_path / "dense.pt")
    with pytest.raises(VividError, match=r"does not fit densenet.*Missing key.*denseblock3\.denselayer5\.conv2"):
        load_encoder(f"torchxrayvision:{DENSENET}={tmp_path / 'dense.pt'}")


def test_weights_that_do_not_exist() -> None:
    with pytest.raises(VividError, match=r"no such weights; choose one of .*densenet121-res224-all"):
        load_encoder("torchxrayvision:densenet121")


def test_weights_that_cannot_be_downloaded(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(xrv.utils, "download", unreachable)
    with pytest.raises(VividError, match=f"no route to host.*fetch https://.* torchxrayvision:{RESNET}=FILE"):
        load_encoder(f"torchxrayvision:{RESNET}")


@pytest.mark.parametrize("pool", ["mean", "pooled"])
def test_one_file_of_ours_holds_all_of_it(state: tuple[Any, str], tmp_path: Path, pool: str) -> None:
    encoder = kept_in_ours(load_encoder(state[1], pool=pool), tmp_path / "ours.safetensors")
    assert encoder.network.grid == ((7, 7) if pool == "mean" else (1, 1))
    images = torch.rand(1, 1, 224, 224) * 2048 - 1024
    with torch.no_grad():
        expected = state[0].features2(images)
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)
    if pool == "mean":
        check_untrained(f"torchxrayvision:{DENSENET}", tmp_path / "ours.safetensors", pool)


def test_a_resnets_cells() -> None:
    encoder = load_encoder(f"untrained:torchxrayvision:{RESNET}", pool="mean")
    images = torch.rand(1, 1, 512, 512)
    torch.testing.assert_close(encoder(images), encoder.network.network(images), atol=1e-5, rtol=1e-5)
    assert encoder.network.grid == (16, 16)
