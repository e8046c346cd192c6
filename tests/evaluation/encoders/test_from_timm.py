"""timm's models as encoders; run where timm is installed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.evaluation.encoders.conftest import check_untrained, kept, prepared
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import load_encoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.library import LibraryBackbone

timm = pytest.importorskip("timm")

VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3, "reg_tokens": 2}


@pytest.fixture
def vit(tmp_path: Path) -> tuple[Any, Path]:
    return saved(tmp_path / "vit", "vit_tiny_patch16_224", VIT)


def saved(folder: Path, architecture: str, arguments: dict[str, Any]) -> tuple[Any, Path]:
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=5, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    return model, folder


def edit(folder: Path, part: str = "pretrained_cfg", **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def own_transform(folder: Path) -> Any:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)


def test_tokens_are_pooled_without_the_registers(vit: tuple[Any, Path], radiograph: Path) -> None:
    model, folder = vit
    with Image.open(radiograph) as image:
        pixels = own_transform(folder)(image.convert("RGB"))[None]
    with torch.no_grad():
        tokens = model.forward_features(pixels)
    assert tokens.shape == (1, 1 + 2 + 16, 48)
    for pool, expected in (
        ("cls", tokens[:, 0]),
        ("mean", tokens[:, 3:].mean(1)),
        ("cls+mean", torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], 1)),
        ("pooled", tokens[:, 0]),
    ):
        encoder = load_encoder(f"timm:{folder}", pool=pool)
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=1e-5)
        assert (encoder.pool, encoder.dim) == (pool, expected.shape[1])
    assert encoder.describe()["architecture"] == "vit_tiny_patch16_224"
    assert not any("head" in name for name in encoder.state_dict())


@pytest.mark.parametrize(
    "changes",
    [{"crop_pct": 0.885}, {"crop_pct": 1.0, "interpolation": "bilinear"}, {"crop_mode": "squash", "crop_pct": 0.8}],
    ids=["center", "whole", "squash"],
)
def test_the_preprocessing_is_timms_own(vit: tuple[Any, Path], radiograph: Path, changes: dict[str, Any]) -> None:
    _, folder = vit
    edit(folder, **changes)
    encoder = load_encoder(f"timm:{folder}")
    with Image.open(radiograph) as image:
        pixels = own_transform(folder)(image.convert("RGB"))[None]
    images = prepared(encoder, radiograph)
    assert images.shape == pixels.shape
    apart = (images - pixels).abs().numpy() * 255 * encoder.preprocess.std[0]
    assert apart.max() < 2.01  # Pillow rounds to bytes between rows and columns
    assert apart.mean() < 0.4


def test_how_an_image_is_cut_is_read_from_the_crop_percentage(vit: tuple[Any, Path]) -> None:
    expected = Preprocess(size=32, channels=3, mean=0.5, std=0.5, resize="crop", resize_to=35, interpolation="bicubic")
    assert load_encoder(f"timm:{vit[1]}").preprocess == expected


def test_networks_without_tokens_give_what_they_pool(tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "resnet", "resnet10t", {})
    with pytest.raises(VividError, match=r"pool='cls': this network has no such.*it has mean, pooled"):
        load_encoder(f"timm:{folder}", pool="cls")
    encoder = load_encoder(f"timm:{folder}")
    pixels = torch.rand(1, 3, encoder.preprocess.size, encoder.preprocess.size)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    assert encoder.pool == "pooled"
    torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=1e-5)


def test_settings_that_no_tensor_tells_are_in_the_fingerprint(vit: tuple[Any, Path]) -> None:
    _, folder = vit
    first = load_encoder(f"timm:{folder}").fingerprint()
    assert load_encoder(f"timm:{folder}").fingerprint() == first
    assert load_encoder(f"timm:{folder}", pool="mean").fingerprint() != first
    edit(folder, "model_args", num_heads=6)
    assert load_encoder(f"timm:{folder}").fingerprint() != first


def test_missing_weights_are_an_error(vit: tuple[Any, Path]) -> None:
    _, folder = vit
    weights = load_file(folder / "model.safetensors")
    del weights["blocks.1.mlp.fc1.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VividError, match="cannot be loaded"):
        load_encoder(f"timm:{folder}")


def test_weights_that_timm_would_not_check_are_refused(vit: tuple[Any, Path]) -> None:
    _, folder = vit
    edit(folder, "model_args", num_classes=7)
    with pytest.raises(VividError, match=r"num_classes is 7 .* and 5 in pretrained_cfg; its weights cannot be checked"):
        load_encoder(f"timm:{folder}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": None}, "has no config.json that says mean in"),
        ({"crop_mode": "border"}, "crop_mode = 'border' cannot be expressed"),
        ({"interpolation": "lanczos"}, "interpolation = 'lanczos' cannot be expressed"),
    ],
)
def test_preprocessing_that_is_not_whole_or_cannot_be_expressed(
    vit: tuple[Any, Path], changes: dict[str, Any], message: str
) -> None:
    edit(vit[1], **changes)
    with pytest.raises(VividError, match=message):
        load_encoder(f"timm:{vit[1]}")


def test_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    _, folder = saved(tmp_path / "wide", "vit_tiny_patch16_224", {**VIT, "img_size": (32, 48)})
    with pytest.raises(VividError, match=r"size = \(32, 48\) cannot be expressed \(square"):
        load_encoder(f"timm:{folder}")


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(VividError, match=r"timm:no_such_model: cannot be loaded: Unknown model"):
        load_encoder("timm:no_such_model")
    with pytest.raises(VividError, match=r"has no config\.json that says input_size, mean"):
        load_encoder(f"timm:{tmp_path}")


def test_pickled_code_is_not_run(vit: tuple[Any, Path], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    _, folder = vit
    (folder / "model.safetensors").unlink()
    torch.save({"norm.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(VividError, match="cannot be loaded"):
        load_encoder(f"timm:{folder}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("architecture", "arguments", "pool"),
    [
        ("vit_tiny_patch16_224", VIT, "cls+mean"),
        ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg"}, "pooled"),
        ("test_convnext", {}, "pooled"),
        ("test_convnext", {}, "mean"),
        ("resnet10t", {"in_chans": 1}, "mean"),
        ("test_efficientnet", {}, None),
    ],
)
def test_one_file_of_ours_holds_all_of_it(
    tmp_path: Path, architecture: str, arguments: dict[str, Any], pool: str | None
) -> None:
    model, folder = saved(tmp_path / "theirs", architecture, arguments)
    encoder = kept(load_encoder(f"timm:{folder}", pool=pool), tmp_path / "ours.safetensors")
    pixels = torch.rand(2, *encoder.preprocess.shape)
    with torch.no_grad():
        pooled, features = model.forward_head(model.forward_features(pixels), pre_logits=True), encoder(pixels)
    if encoder.pool != "cls+mean":  # of this one timm pools CLS
        torch.testing.assert_close(features, pooled, atol=1e-4, rtol=1e-4)
    (folder / "model.safetensors").unlink()
    check_untrained(f"timm:{folder}", tmp_path / "ours.safetensors", pool)


def test_registers_without_cls_are_no_tokens(tmp_path: Path) -> None:
    arguments = {**VIT, "class_token": False, "global_pool": "avg"}
    model, folder = saved(tmp_path / "vit", "vit_tiny_patch16_224", arguments)
    encoder = load_encoder(f"timm:{folder}", pool="mean")
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_features(pixels)[:, 2:]
    assert encoder.network.prefix == 0
    torch.testing.assert_close(encoder.network(pixels), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(VividError, match=r"it has mean, pooled"):
        load_encoder(f"timm:{folder}", pool="cls")


def test_a_name_gives_fresh_weights_without_a_connection() -> None:
    one, other = (load_encoder("untrained:timm:test_vit.r160_in1k", seed=seed) for seed in (0, 1))
    assert one.describe()["architecture"] == "test_vit"
    assert one.fingerprint() != other.fingerprint()
    assert one.preprocess == other.preprocess


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "hf-hub:maker/model"}, "'hf-hub:maker/model' is none of timm"),
        ({"architecture": ["test_vit"]}, "is none of timm"),
        ({"architecture": "test_vit", "checkpoint_path": "/etc/passwd"}, "checkpoint_path is not taken from a file"),
        ({"architecture": "test_vit", "pretrained_cfg": {"file": "x"}}, "pretrained_cfg is not taken from a file"),
        ({"architecture": "test_vit", "nonsense": 1}, "timm cannot build this model"),
    ],
)
def test_what_may_not_come_from_a_file(model: dict[str, Any], message: str) -> None:
    with pytest.raises(VividError, match=message):
        LibraryBackbone(library="timm", model=model, image_shape=(3, 160, 160))
