"""Our own ViT, trained or not, as an encoder."""

from pathlib import Path

import pytest
import torch

from tests.evaluation.encoders.conftest import PREPROCESS, prepared
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import VividEncoder, load_encoder
from vivid_monai.networks.classifier import BACKBONES, Classifier
from vivid_monai.networks.modules import load_module, save_module
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
def test_features_are_those_that_the_classifier_sees(vit_file: str, radiograph: Path, pool: str) -> None:
    encoder = load_encoder(vit_file, pool=pool)
    images = prepared(encoder, radiograph)
    expected = Classifier(load_module(vit_file, BACKBONES).module, 1, pool=pool).eval().features(images)
    assert isinstance(encoder, VividEncoder)
    assert encoder.dim == expected.shape[1]
    assert torch.equal(encoder(images), expected)
    assert not torch.equal(encoder(images), encoder(1 - images))


def test_the_file_says_how_its_encoder_is_read_out(vit_file: str, radiograph: Path, tmp_path: Path) -> None:
    plain, spd, path = load_module(vit_file, BACKBONES).module, SPD(128, groups=3), tmp_path / "read.safetensors"
    for pool in ("cls", "spd"):
        save_module(plain, path, kind="vit", spd=spd, pool=pool, preprocess=PREPROCESS.to_dict())
        assert load_encoder(str(path)).pool == pool
        assert load_encoder(str(path), pool="mean").pool == "mean"
    one, fresh = load_encoder(str(path)), load_encoder(f"untrained:{path}")
    images = prepared(one, radiograph)
    assert torch.equal(one(images), Classifier(plain, 1, pool="spd", spd=spd).eval().features(images))
    assert one.dim == fresh.dim == 6 * 128
    assert fresh.pool == "spd"
    assert not torch.equal(one(images), fresh(images))
    without, through_cls = load_encoder(vit_file), load_encoder(str(path), pool="cls")
    assert through_cls.fingerprint() == without.fingerprint(), "an SPD that is not read is no part of the features"
    with torch.no_grad():
        spd.queries += 1
    save_module(plain, path, kind="vit", spd=spd, pool="spd", preprocess=PREPROCESS.to_dict())
    assert load_encoder(str(path)).fingerprint() != one.fingerprint()
    with pytest.raises(VividError, match="pool='spd': this network has no such"):
        load_encoder(vit_file, pool="spd")


def test_the_preprocessing_travels_with_the_weights(vit_file: str, tmp_path: Path) -> None:
    assert load_encoder(vit_file).preprocess == PREPROCESS
    incomplete = {key: value for key, value in PREPROCESS.to_dict().items() if key != "resize_to"}
    save_module(
        load_module(vit_file, BACKBONES).module, tmp_path / "old.safetensors", kind="vit", preprocess=incomplete
    )
    with pytest.raises(VividError, match=r"old\.safetensors: preprocess: missing keys \['resize_to'\]"):
        load_encoder(str(tmp_path / "old.safetensors"))


def test_an_untrained_network_is_the_same_but_for_its_weights(vit_file: str) -> None:
    trained, fresh = load_encoder(vit_file), load_encoder(f"untrained:{vit_file}")
    assert isinstance(trained, VividEncoder)
    assert isinstance(fresh, VividEncoder)
    assert fresh.network.config == trained.network.config
    assert fresh.preprocess == trained.preprocess
    assert not torch.equal(fresh.network.cls_token, trained.network.cls_token)
    assert fresh.describe()["source"] == f"untrained:{vit_file} (seed 0)"


def test_fresh_weights_depend_on_the_seed_alone(vit_file: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_encoder(f"untrained:{vit_file}", seed=7)
    assert torch.equal(torch.rand(3), expected)  # the global state was left alone
    again = load_encoder(f"untrained:{vit_file}", seed=7)
    assert again.fingerprint() == first.fingerprint()
    assert load_encoder(f"untrained:{vit_file}", seed=8).fingerprint() != first.fingerprint()
    assert load_encoder(vit_file, seed=7).fingerprint() == load_encoder(vit_file, seed=8).fingerprint()
    torch.manual_seed(7)
    assert torch.equal(ViT(**first.network.config).cls_token, first.network.cls_token)


def test_a_vit_of_ours_has_no_pooled_output(vit_file: str) -> None:
    with pytest.raises(VividError, match=r"this network has no such.*it has cls, mean, cls\+mean"):
        load_encoder(vit_file, pool="pooled")
