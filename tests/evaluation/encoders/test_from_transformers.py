"""Saved models of the real architectures, small and with random weights, loaded without a network."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.evaluation.encoders import saved_models as small
from tests.evaluation.encoders.conftest import check_untrained, kept, prepared
from tests.evaluation.encoders.saved_models import edit, saved, vision
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import TokenEncoder, load_encoder
from vivid_monai.evaluation.workflows import PRETRAINED, save_encoder
from vivid_monai.networks.classifier import BACKBONES, Classifier
from vivid_monai.networks.modules import load_module
from vivid_monai.networks.spd import SPD

Output = Any


def cls(output: Output, model: Any) -> torch.Tensor:
    return output.last_hidden_state[:, 0]


def mean_after(prefix: int) -> Callable:
    return lambda output, model: output.last_hidden_state[:, prefix:].mean(1)


def both_after(prefix: int) -> Callable:
    return lambda output, model: torch.cat([cls(output, model), mean_after(prefix)(output, model)], 1)


def pooled(output: Output, model: Any) -> torch.Tensor:
    return output.pooler_output.flatten(1)


def clip_mean(output: Output, model: Any) -> torch.Tensor:
    return model.post_layernorm(output.last_hidden_state)[:, 1:].mean(1)


# build, pool asked, pool used, features of the original model
CASES = [
    (small.vit, None, "cls", cls),
    (small.vit, "mean", "mean", mean_after(1)),
    (small.vit, "cls+mean", "cls+mean", both_after(1)),
    (small.vit, "pooled", "pooled", pooled),
    (small.vit_classifier, "cls", "cls", cls),
    (small.deit, "mean", "mean", mean_after(2)),
    (small.beit, "cls", "cls", cls),
    (small.data2vec, "mean", "mean", mean_after(1)),
    (small.msn, "cls+mean", "cls+mean", both_after(1)),
    (small.ijepa, "mean", "mean", mean_after(0)),
    (small.rad_dino, "cls", "cls", cls),
    (small.rad_dino, "mean", "mean", mean_after(1)),
    (small.registers, "cls+mean", "cls+mean", both_after(5)),
    (small.dinov3, "cls", "cls", cls),
    (small.dinov3, "mean", "mean", mean_after(5)),
    (small.siglip_vision, None, "pooled", pooled),
    (small.siglip_vision, "mean", "mean", mean_after(0)),
    (small.siglip, None, "pooled", pooled),
    (small.clip, "cls", "cls", pooled),  # CLIP's pooled output is its CLS token after the last LayerNorm
    (small.clip, "mean", "mean", clip_mean),
    (small.resnet, None, "pooled", pooled),
    (small.convnext, "pooled", "pooled", pooled),
]


@pytest.mark.parametrize(
    ("build", "asked", "used", "reference"), CASES, ids=[f"{build.__name__}-{asked}" for build, asked, *_ in CASES]
)
def test_features_equal_those_of_the_original(
    tmp_path: Path, radiograph: Path, build: Callable, asked: str | None, used: str, reference: Callable
) -> None:
    model, processor = saved(build, tmp_path)
    with Image.open(radiograph) as image:
        pixels = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = reference(vision(model)(pixel_values=pixels), vision(model))

    encoder = load_encoder(str(tmp_path), pool=asked)
    assert (encoder.pool, encoder.dim) == (used, expected.shape[1])
    features = encoder(pixels)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert encoder.describe()["architecture"].startswith(type(model).__name__[:3])

    images = prepared(encoder, radiograph)
    assert images.shape == pixels.shape
    # Both work in bytes; Pillow rounds between rows and columns too, and clips what bicubic overshoots there.
    bytes_apart = (images - pixels).abs().amax((0, 2, 3)).numpy() * encoder.preprocess.std * 255
    assert bytes_apart.max() < 2.01
    assert np.abs((images - pixels).numpy()).mean() * 255 * np.mean(encoder.preprocess.std) < 0.4


def test_dinov3s_own_processor(tmp_path: Path, radiograph: Path) -> None:
    """Run where torchvision is installed: without it transformers has no processor for DINOv3."""
    pytest.importorskip("torchvision")
    saved(small.dinov3, tmp_path)
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == "DINOv3ViTImageProcessor"
    with Image.open(radiograph) as image:
        pixels = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
    encoder = load_encoder(str(tmp_path))
    apart = (prepared(encoder, radiograph) - pixels).abs().amax((0, 2, 3)).numpy() * encoder.preprocess.std * 255
    assert apart.max() < 0.51  # it resizes in floating point, and we round the result to bytes


def test_mae_sees_the_whole_image_in_order(tmp_path: Path) -> None:
    """Masking is off: the tokens are those of a ViT with the same weights."""
    model, _ = saved(small.mae, tmp_path)
    twin = hf.ViTModel(hf.ViTConfig(**small.MLP), add_pooling_layer=False).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if name in twin.state_dict()}
    twin.load_state_dict(state)
    pixels = torch.rand(2, 3, 32, 32)
    for pool, reference in (("cls", cls), ("mean", mean_after(1))):
        encoder = load_encoder(str(tmp_path), pool=pool)
        torch.testing.assert_close(encoder(pixels), reference(twin(pixels), twin), atol=1e-5, rtol=1e-5)
        assert torch.equal(encoder(pixels), encoder(pixels))


def test_of_a_pair_the_vision_tower_is_taken(tmp_path: Path) -> None:
    model, _ = saved(small.siglip, tmp_path)
    parameters = sum(p.numel() for p in model.vision_model.parameters())
    assert load_encoder(str(tmp_path)).describe()["n_parameters"] == parameters


def test_what_is_not_used_is_not_part_of_the_encoder(tmp_path: Path) -> None:
    """A checkpoint with a head, and the random pooler transformers adds: neither changes the fingerprint."""
    saved(small.vit_classifier, tmp_path)
    first, again = load_encoder(str(tmp_path)), load_encoder(str(tmp_path))
    assert first.fingerprint() == again.fingerprint()
    assert not any("pooler" in name or "classifier" in name for name in first.state_dict())


def test_the_fingerprint_follows_weights_and_settings_but_not_the_folder(tmp_path: Path) -> None:
    saved(small.vit, tmp_path / "a")
    first = load_encoder(str(tmp_path / "a")).fingerprint()

    def copied(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "a", tmp_path / name))

    assert load_encoder(str(copied("b"))).fingerprint() == first
    assert load_encoder(f"transformers:{tmp_path / 'b'}").fingerprint() == first
    edit(copied("labels"), "config.json", id2label={"0": "x", "1": "y", "2": "z"})
    assert load_encoder(str(tmp_path / "labels")).fingerprint() == first
    edit(copied("heads"), "config.json", num_attention_heads=4)
    assert load_encoder(str(tmp_path / "heads")).fingerprint() != first
    edit(copied("rule"), resample=3)
    assert load_encoder(str(tmp_path / "rule")).fingerprint() != first
    weights = load_file(copied("weight") / "model.safetensors")
    weights["layernorm.weight"][3] += 1e-3
    save_file(weights, tmp_path / "weight" / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(tmp_path / "weight")).fingerprint() != first


def test_weights_of_half_precision_give_float32(tmp_path: Path) -> None:
    model, processor = small.vit()
    model.bfloat16().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert encoder(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def without(folder: Path, *prefixes: str, add: dict[str, torch.Tensor] | None = None) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}
    assert len(kept) < len(weights) or add
    save_file(kept | (add or {}), folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_an_error_unless_they_are_not_used(tmp_path: Path) -> None:
    saved(small.rad_dino, tmp_path / "dino")
    without(tmp_path / "dino", "embeddings.mask_token")
    load_encoder(str(tmp_path / "dino"))
    without(tmp_path / "dino", "encoder.layer.1.mlp.fc1.weight")
    with pytest.raises(VividError, match=r"dino: as a Dinov2Model it lacks weights: encoder\.layer\.1\.mlp\.fc1\.weig"):
        load_encoder(str(tmp_path / "dino"))

    saved(small.siglip_vision, tmp_path / "siglip")
    names = list(load_file(tmp_path / "siglip" / "model.safetensors"))
    without(tmp_path / "siglip", *(name for name in names if "head." in name))
    assert load_encoder(str(tmp_path / "siglip"), pool="mean").pool == "mean"
    with pytest.raises(VividError, match=r"lacks weights: (vision_model\.)?head"):
        load_encoder(str(tmp_path / "siglip"))

    saved(small.vit_classifier, tmp_path / "vit")
    with pytest.raises(VividError, match="lacks weights: pooler"):
        load_encoder(str(tmp_path / "vit"), pool="pooled")


def test_weights_without_a_place_are_an_error(tmp_path: Path) -> None:
    """A third layer, where the configuration speaks of two, would be dropped in silence."""
    saved(small.rad_dino, tmp_path)
    without(tmp_path, "nothing", add={"encoder.layer.2.norm1.weight": torch.ones(32)})
    with pytest.raises(VividError, match=r"has weights without a place: encoder\.layer\.2\.norm1\.weight"):
        load_encoder(str(tmp_path))


def test_a_misfit_is_an_error(tmp_path: Path) -> None:
    saved(small.vit, tmp_path)
    edit(tmp_path, "config.json", intermediate_size=64)
    with pytest.raises(VividError, match=r"another model than the weights: .*bias is 48 in the file, 64 by config"):
        load_encoder(str(tmp_path))


def test_a_pointer_of_git_lfs_is_told_from_weights(tmp_path: Path) -> None:
    saved(small.vit, tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(VividError, match=r"model\.safetensors: is a pointer of Git LFS, not the weights"):
        load_encoder(str(tmp_path))


def test_no_processor_is_an_error_and_not_a_default(tmp_path: Path) -> None:
    saved(small.vit, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(VividError, match=r"has no preprocessor_config\.json, .* is not to be guessed"):
        load_encoder(str(tmp_path))


def test_a_processor_for_another_size_is_an_error(tmp_path: Path) -> None:
    saved(small.vit, tmp_path)
    edit(tmp_path, size={"height": 48, "width": 48})
    with pytest.raises(VividError, match="does not take the images that its preprocessing makes, 3 x 48 x 48"):
        load_encoder(str(tmp_path))


def test_a_model_that_is_no_vision_model(tmp_path: Path) -> None:
    config = hf.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9
    )
    hf.BertModel(config).save_pretrained(tmp_path)
    hf.ViTImageProcessorPil(size=small.SQUARE).save_pretrained(tmp_path)
    with pytest.raises(VividError, match="a bert model takes no images"):
        load_encoder(str(tmp_path))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    saved(small.vit, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"layernorm.weight": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(VividError, match="cannot be read as a vision model"):
        load_encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    saved(small.vit, tmp_path)
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Trap: pass\n")
    edit(tmp_path, "config.json", model_type="trap", auto_map={"AutoConfig": "trap.Trap", "AutoModel": "trap.Trap"})
    with pytest.raises(VividError, match="cannot be read as a vision model"):
        load_encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_plain_tensors_of_an_older_file_are_read(tmp_path: Path) -> None:
    model, _ = saved(small.vit, tmp_path)
    first = load_encoder(str(tmp_path)).fingerprint()
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert load_encoder(str(tmp_path)).fingerprint() == first


def test_a_hub_name_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(VividError, match=r"no-such-maker/no-such-model.*hf download no-such-maker/no-such-model"):
        load_encoder("transformers:no-such-maker/no-such-model")


@pytest.mark.parametrize(
    ("build", "pool"),
    [
        (small.vit, "pooled"),
        (small.mae, "cls+mean"),
        (small.registers, None),
        (small.dinov3, "mean"),
        (small.siglip, None),
        (small.clip, "mean"),
        (small.convnext, None),
        (small.resnet, "mean"),
    ],
)
def test_one_file_of_ours_holds_all_of_it(tmp_path: Path, build: Callable, pool: str | None) -> None:
    saved(build, tmp_path / "theirs")
    kept(load_encoder(str(tmp_path / "theirs"), pool=pool), tmp_path / "ours.safetensors")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    check_untrained(f"transformers:{tmp_path / 'theirs'}", tmp_path / "ours.safetensors", pool)
    plain, named = (load_encoder(f"untrained:{kind}{tmp_path / 'theirs'}") for kind in ("", "transformers:"))
    assert plain.fingerprint() == named.fingerprint()
    shutil.rmtree(tmp_path / "theirs")
    load_encoder(str(tmp_path / "ours.safetensors"))


def test_a_file_of_one_output_has_no_other(tmp_path: Path) -> None:
    saved(small.siglip_vision, tmp_path / "theirs")
    for pool, other, has in (("pooled", "mean", "pooled"), ("mean", "pooled", "mean")):
        kept(load_encoder(str(tmp_path / "theirs"), pool=pool), tmp_path / "ours.safetensors")
        with pytest.raises(VividError, match=f"pool='{other}': .* it has {has}$"):
            load_encoder(str(tmp_path / "ours.safetensors"), pool=other)


def test_tokens_are_to_be_had_beside_a_pooled_output(tmp_path: Path) -> None:
    """For the attentive probe, which reads tokens whatever the pool is."""
    model, _ = saved(small.siglip_vision, tmp_path)
    tokens = TokenEncoder(load_encoder(str(tmp_path)))
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = vision(model)(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(tokens(pixels), expected, atol=1e-5, rtol=1e-5)


def test_a_classifier_trained_further_is_the_encoder_of_its_file(tmp_path: Path) -> None:
    """From a folder of transformers to a run's files: trained with SPD, saved, read out as it was trained."""
    saved(small.registers, tmp_path / "theirs")
    start = kept(load_encoder(str(tmp_path / "theirs")), tmp_path / "ours.safetensors")
    backbone = load_module(tmp_path / "ours.safetensors", BACKBONES).module
    network = Classifier(backbone, 2, pool="spd", spd=SPD(backbone.embed_dim, groups=2, heads=2))
    pixels = torch.rand(4, 3, 32, 32)
    network(pixels).square().sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    file = tmp_path / PRETRAINED
    save_encoder(network.encoder, file, start.preprocess, pool=network.pool, spd=network.spd)
    encoder = load_encoder(str(file))
    assert (encoder.kind, encoder.pool) == ("transformers", "spd")
    assert torch.equal(encoder(pixels), network.eval().features(pixels))
    assert not torch.equal(encoder.network(pixels), start.network(pixels))
