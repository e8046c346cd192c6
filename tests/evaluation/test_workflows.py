"""The jobs around an evaluation: which SPD an encoder's attention maps are drawn with, encoders of any backbone."""

from pathlib import Path

import pytest
import torch

from tests.evaluation.small import encoder
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import VividEncoder, for_task, load_encoder
from vivid_monai.evaluation.workflows import INITIAL, PRETRAINED, SPD_FILE, _spd_of
from vivid_monai.images.preprocess import VolumePreprocess
from vivid_monai.networks.modules import fingerprint, save_module
from vivid_monai.networks.resnet import ResNet
from vivid_monai.networks.spd import SPD


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder: an encoder as it was before and after pretraining."""
    for seed, name in ((0, INITIAL), (1, PRETRAINED)):
        one = encoder(seed)
        save_module(one.network, tmp_path / name, kind="vit", preprocess=one.preprocess.to_dict())
    return tmp_path


def spd_beside(path: Path) -> SPD | None:
    return _spd_of(load_encoder(str(path)), path)


def test_an_spd_is_used_with_the_encoder_that_it_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"encoder": fingerprint(load_encoder(str(run / PRETRAINED)).network)}
    save_module(SPD(128, groups=2, queries=2, heads=4), run / SPD_FILE, kind="spd", extra=named)
    assert isinstance(spd_beside(run / PRETRAINED), SPD)
    assert spd_beside(run / INITIAL) is None
    assert "No attention maps" in capsys.readouterr().err
    moved = run / "renamed.safetensors"
    (run / PRETRAINED).rename(moved)
    assert isinstance(spd_beside(moved), SPD), "a name decides nothing where the file says it"
    (run / INITIAL).rename(run / PRETRAINED)
    assert spd_beside(run / PRETRAINED) is None


def test_the_spd_of_an_encoders_file_is_drawn_whatever_is_pooled(run: Path) -> None:
    one, spd = encoder(1), SPD(128, groups=3)
    for pool in ("spd", "cls"):
        file = run / PRETRAINED
        save_module(one.network, file, kind="vit", spd=spd, pool=pool, preprocess=one.preprocess.to_dict())
        found = spd_beside(file)
        assert found is not None
        assert torch.equal(found.queries, spd.queries)


def test_an_spd_that_names_no_encoder_is_the_pretrained_ones(run: Path) -> None:
    save_module(SPD(128, groups=2, queries=2, heads=4), run / SPD_FILE, kind="spd")
    assert isinstance(spd_beside(run / PRETRAINED), SPD)
    assert spd_beside(run / INITIAL) is None
    (run / SPD_FILE).unlink()
    assert spd_beside(run / PRETRAINED) is None


def test_a_backbone_of_volumes_is_an_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    preprocess = VolumePreprocess(size=(16, 32, 32), spacing=(2.0, 1.0, 1.0))
    resnet = ResNet(img_size=preprocess.shape[1:], spatial_dims=3)
    save_module(resnet, tmp_path / "ct.safetensors", kind="resnet", preprocess=preprocess.to_dict())
    one = load_encoder(str(tmp_path / "ct.safetensors"))
    assert isinstance(one, VividEncoder)
    assert (one.preprocess, one.pool, one.dim) == (preprocess, "mean", resnet.embed_dim)
    images = torch.rand(2, *preprocess.shape)
    with torch.no_grad():
        assert torch.allclose(one(images), resnet.eval()(images).mean(1), atol=1e-6)
    assert for_task(one, window=(-600, 1500)).preprocess.window == (-600, 1500)
    with pytest.raises(VividError, match="encodes whole volumes"):
        for_task(one, slices=3)
