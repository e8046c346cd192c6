"""open_clip's vision towers as encoders; run where open_clip is installed."""

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
from vivid_monai.networks.library import LibraryBackbone

open_clip = pytest.importorskip("open_clip")

PREPROCESS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
CLIP = {"embed_dim": 24, "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2}, "text_cfg": TEXT}
# BiomedCLIP's shape, with a smaller network: a ViT of timm, a linear projection, and a text tower of the hub, which
# cannot be built without a network.
BIOMED = {
    "embed_dim": 24,
    "vision_cfg": {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 160,
    },
    "text_cfg": {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}


def saved(folder: Path, model: dict[str, Any], preprocess: dict[str, Any] | None = None, *, text: bool = True) -> Any:
    """The folder of a model, and the model: with both towers, where they can be built, or the vision tower alone."""
    torch.manual_seed(0)
    if text:
        network = open_clip.CLIP(**model).eval()
        tower = network.visual
    else:
        tower = network = open_clip.model._build_vision_tower(model["embed_dim"], model["vision_cfg"]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    weights = network.state_dict()
    if not text:
        weights = {f"visual.{name}": tensor for name, tensor in weights.items()}
        weights |= {
            "text.transformer.embeddings.word_embeddings.weight": torch.zeros(4, 4),
            "logit_scale": torch.ones(()),
        }
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model, "preprocess_cfg": PREPROCESS if preprocess is None else preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return tower


def test_a_plain_clip_gives_tokens_before_and_the_embedding_after_the_projection(tmp_path: Path) -> None:
    tower = saved(tmp_path / "clip", CLIP)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        embedding = tower(pixels)
        tower.proj = None
        cls = tower(pixels)
        tower.output_tokens = True
        patches = tower(pixels)[1]
    assert patches.shape == (2, 16, 64)
    for pool, expected in (
        ("cls", cls),
        ("mean", patches.mean(1)),
        ("cls+mean", torch.cat([cls, patches.mean(1)], 1)),
        ("pooled", embedding),
    ):
        encoder = load_encoder(f"open_clip:{tmp_path / 'clip'}", pool=pool)
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=1e-5)
        assert (encoder.pool, encoder.dim) == (pool, expected.shape[1])
    assert encoder.describe()["architecture"] == "VisionTransformer (open_clip)"
    assert not any("token_embedding" in name for name in encoder.state_dict())


def test_biomedclips_shape_needs_no_text_tower(tmp_path: Path) -> None:
    tower = saved(tmp_path / "biomed", BIOMED, text=False)
    pixels = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        tokens = tower.trunk.forward_features(pixels)
        embedding = tower(pixels)
    for pool, expected in (
        ("cls", tokens[:, 0]),
        ("mean", tokens[:, 1:].mean(1)),
        ("pooled", embedding),
    ):
        encoder = load_encoder(f"open_clip:{tmp_path / 'biomed'}", pool=pool)
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=1e-5)
    assert encoder.describe()["architecture"] == "test_vit (open_clip)"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"resize_mode": "squash", "interpolation": "bilinear"},
        {"resize_mode": "longest", "interpolation": "bilinear"},
    ],
    ids=["shortest", "squash", "longest"],
)
def test_the_preprocessing_is_open_clips_own(tmp_path: Path, radiograph: Path, more: dict[str, str]) -> None:
    saved(tmp_path / "clip", CLIP, PREPROCESS | more)
    encoder = load_encoder(f"open_clip:{tmp_path / 'clip'}")
    config = open_clip.transform.PreprocessCfg(size=32, **PREPROCESS, **more)
    with Image.open(radiograph) as image:
        pixels = open_clip.transform.image_transform_v2(config, is_train=False)(image.convert("RGB"))[None]
    images = prepared(encoder, radiograph)
    assert images.shape == pixels.shape
    apart = (images - pixels).abs().numpy() * 255 * 0.27
    assert apart.max() < 2.01  # Pillow rounds to bytes between rows and columns
    assert apart.mean() < 0.4


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    saved(tmp_path / "clip", CLIP)
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    weights = load_file(file)
    save_file({name: t for name, t in weights.items() if "resblocks.1.mlp.c_fc" not in name}, file)
    with pytest.raises(VividError, match=r"does not fit open_clip_config\.json: Missing key.*resblocks\.1\.mlp\.c_fc"):
        load_encoder(f"open_clip:{tmp_path / 'clip'}")


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"std": [0.2] * 3}, "does not say mean in preprocess_cfg"),
        (PREPROCESS | {"interpolation": "random"}, "preprocess_cfg: interpolation = 'random' cannot be expressed"),
        (PREPROCESS | {"size": [32, 48]}, r"preprocess_cfg: size = \[32, 48\] cannot be expressed"),
        (PREPROCESS | {"resize_mode": "longest", "fill_color": 128}, "fill_color = 128"),
    ],
)
def test_preprocessing_that_is_not_whole_or_cannot_be_expressed(
    tmp_path: Path, preprocess: dict[str, Any], message: str
) -> None:
    saved(tmp_path / "clip", CLIP, preprocess)
    with pytest.raises(VividError, match=message):
        load_encoder(f"open_clip:{tmp_path / 'clip'}")


def test_a_folder_without_its_files(tmp_path: Path) -> None:
    with pytest.raises(VividError, match=r"a folder with open_clip_config\.json and one of"):
        load_encoder(f"open_clip:{tmp_path}")


def test_a_name_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(VividError, match="hf download no-maker/no-model"):
        load_encoder("open_clip:hf-hub:no-maker/no-model")


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    saved(tmp_path / "clip", CLIP)
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    torch.save({"visual.proj": Trap()}, tmp_path / "clip" / "open_clip_pytorch_model.bin")
    with pytest.raises(VividError, match="cannot be read as plain tensors"):
        load_encoder(f"open_clip:{tmp_path / 'clip'}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("pool", ["cls+mean", "pooled"])
@pytest.mark.parametrize(("model", "text"), [(CLIP, True), (BIOMED, False)], ids=["plain", "biomed"])
def test_one_file_of_ours_holds_all_of_it(tmp_path: Path, model: dict[str, Any], text: bool, pool: str) -> None:
    saved(tmp_path / "theirs", model, text=text)
    encoder = kept(load_encoder(f"open_clip:{tmp_path / 'theirs'}", pool=pool), tmp_path / "ours.safetensors")
    assert encoder.network.grid == ((1, 1) if pool == "pooled" else (4, 4) if text else (10, 10))
    (tmp_path / "theirs" / "open_clip_model.safetensors").unlink()
    check_untrained(f"open_clip:{tmp_path / 'theirs'}", tmp_path / "ours.safetensors", pool)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"timm_model_name": "hf-hub:maker/model"}, "timm_model_name='hf-hub:maker/model' is none of timm's"),
        ({"nonsense": 1}, "open_clip cannot build this model"),
    ],
)
def test_what_may_not_come_from_a_file(vision: dict[str, Any], message: str) -> None:
    model = {"embed_dim": 24, "vision_cfg": vision}
    with pytest.raises(VividError, match=message):
        LibraryBackbone(library="open_clip", model=model, image_shape=(3, 32, 32))
