"""Networks of transformers and MONAI as backbones; the other libraries' are in tests/evaluation/encoders."""

import copy
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn

from tests.evaluation.encoders import saved_models as small
from vivid_monai.deploy.scripts import module_files
from vivid_monai.errors import LONGEST, VividError
from vivid_monai.networks.classifier import BACKBONES, Classifier
from vivid_monai.networks.library import TRANSFORMERS_SAY_NOTHING, LibraryBackbone, offers
from vivid_monai.networks.modules import load_module, save_module
from vivid_monai.networks.spd import SPD

SHAPE = (3, 32, 32)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))


def described(model: Any) -> dict[str, Any]:
    said = model.config.to_dict()
    return {key: said[key] for key in said.keys() - TRANSFORMERS_SAY_NOTHING if not key.startswith("_")}


def wrapped(build: Callable, output: str = "tokens") -> tuple[Any, LibraryBackbone]:
    """A model of transformers in which every weight matters, and the backbone with its weights."""
    torch.manual_seed(0)
    model = build()[0].eval()
    small.randomise(model)
    backbone = LibraryBackbone(library="transformers", model=described(model), image_shape=SHAPE, output=output)
    own = backbone.network.state_dict()
    backbone.network.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in own})
    return model, backbone


def images(n: int = 2, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def hidden(output: Any) -> Tensor:
    return output.last_hidden_state


def cells(output: Any) -> Tensor:
    return output.last_hidden_state.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ("build", "prefix", "read"),
    [
        (small.vit, 1, hidden),
        (small.deit, 2, hidden),
        (small.beit, 1, hidden),
        (small.registers, 5, hidden),
        (small.dinov3, 5, hidden),
        (small.siglip_vision, 0, hidden),
        (small.resnet, 0, cells),
    ],
)
def test_tokens_are_the_librarys_and_a_file_brings_them_back(
    tmp_path: Path, build: Callable, prefix: int, read: Callable
) -> None:
    """Some have tables that are in no file: BEiT's positions, DINOv3's angles."""
    model, backbone = wrapped(build)
    with torch.no_grad():
        expected, tokens = read(model(pixel_values=images())), backbone.eval()(images())
    torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=1e-5)
    assert (backbone.prefix, backbone.grid, backbone.image_shape) == (prefix, (4, 4), SHAPE)
    assert tokens.shape == (2, prefix + 16, backbone.embed_dim)
    assert backbone.architecture == type(model).__name__

    save_module(backbone, tmp_path / "a.safetensors", kind="library")
    torch.manual_seed(5)
    following = torch.rand(1)
    torch.manual_seed(5)
    again = load_module(tmp_path / "a.safetensors", BACKBONES).module
    assert torch.equal(torch.rand(1), following), "the global random state is left as it is"
    assert again.config == backbone.config
    assert all(module.training for module in again.modules())
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(again.eval()(images()), tokens)
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.zero_()
        assert torch.equal(other.eval()(images()), tokens), "nothing is shared with what it was copied from"


@pytest.mark.parametrize("build", [small.resnet, small.convnext])
def test_the_mean_of_the_cells_is_the_networks_own_pooled_output(build: Callable) -> None:
    model, backbone = wrapped(build)
    with torch.no_grad():
        expected = model(pixel_values=images()).pooler_output.flatten(1)
        tokens = backbone.eval()(images())
    assert tokens.shape[1] == 16
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 0.1
    torch.testing.assert_close(tokens.mean(1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [small.siglip_vision, small.vit, small.convnext])
def test_the_pooled_output_is_one_token(tmp_path: Path, build: Callable) -> None:
    model, backbone = wrapped(build, output="pooled")
    with torch.no_grad():
        expected, tokens = model(pixel_values=images()).pooler_output, backbone.eval()(images())
    torch.testing.assert_close(tokens[:, 0], expected, atol=1e-6, rtol=1e-5)
    assert tokens.shape == (2, 1, backbone.embed_dim)
    assert (backbone.prefix, backbone.grid) == (0, (1, 1))
    save_module(backbone, tmp_path / "a.safetensors", kind="library")
    assert torch.equal(load_module(tmp_path / "a.safetensors", BACKBONES).module.eval()(images()), tokens)


def test_fresh_weights_are_the_librarys_own() -> None:
    torch.manual_seed(3)
    expected = small.vit()[0].state_dict()
    torch.manual_seed(3)
    model = described(small.vit()[0])
    torch.manual_seed(3)
    fresh = LibraryBackbone(library="transformers", model=model, image_shape=SHAPE, output="pooled")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fresh.network.state_dict().items())


@pytest.mark.parametrize("build", [small.vit, small.registers, small.siglip_vision, small.convnext])
@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean", "spd"])
def test_a_classifier_on_it_trains(build: Callable, pool: str) -> None:
    _, backbone = wrapped(build)
    spd = SPD(backbone.embed_dim, groups=2, heads=2)
    if "cls" in pool and not backbone.prefix:
        with pytest.raises(VividError, match="has no such tokens"):
            Classifier(backbone, 2, pool=pool)
        return
    network = Classifier(backbone, 2, pool=pool, spd=spd)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    labels, losses = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), []
    for _ in range(3):
        loss = nn.functional.binary_cross_entropy_with_logits(network(images()), labels)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        reached = {name for name, one in backbone.named_parameters() if one.grad is not None and one.grad.any()}
        optimizer.step()
    assert losses[-1] < losses[0]
    assert any("patch_embed" in name for name in reached), "the first layer learns"
    trained = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    again = Classifier(LibraryBackbone(**backbone.config), 2, pool=pool, spd=SPD(**spd.config))
    again.load_state_dict(trained)
    assert torch.equal(again.eval()(images()), network.eval()(images()))


@pytest.mark.parametrize("name", ["densenet121", "resnet18"])
def test_monais_networks(name: str) -> None:
    model = {"architecture": name, "in_channels": 1}
    backbone = LibraryBackbone(library="monai", model=model, image_shape=(1, 64, 64)).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    options = {"in_channels": 1, "out_channels": 3} if name == "densenet121" else {"n_input_channels": 1}
    own = getattr(nets, name)(spatial_dims=2, **options).eval()
    found = own.load_state_dict(backbone.network.state_dict(), strict=False)
    assert not found.unexpected_keys
    if name == "densenet121":
        own.class_layers.out = nn.Identity()
    else:
        own.fc = None
    x = images(2, (1, 64, 64))
    torch.testing.assert_close(backbone(x).mean(1), own(x), atol=1e-5, rtol=1e-5)
    assert backbone(x).shape == (2, backbone.grid[0] ** 2, {"densenet121": 1024, "resnet18": 512}[name])
    assert offers("monai", model) == (False, True)


VIT = described(small.vit()[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"library": "os"}, "library='os' must be one of transformers, timm, open_clip, torchxrayvision, monai"),
        ({"output": "logits"}, "output='logits' must be tokens or pooled"),
        ({"image_shape": [3, 32, 48]}, "image_shape=.* two equal sides"),
        ({"image_shape": [3, 100_000, 100_000]}, "image_shape=.* up to 4096"),
        ({"image_shape": [3, 48, 48]}, "ViTModel.* does not take the images that its preprocessing makes, 3 x 48 x 48"),
        ({"image_shape": [1, 32, 32]}, "does not take the images .* 1 x 32 x 32"),
        ({"model": {}}, "model_type=None is no vision model"),
        ({"model": {"model_type": "vitt"}}, "transformers cannot build this model.*vitt"),
        ({"model": {"model_type": "bert", "hidden_size": 24, "intermediate_size": 32}}, "a bert model takes no images"),
        ({"model": {"model_type": "timm_wrapper", "architecture": "hf-hub:x/y"}}, "model_type='timm_wrapper'"),
        ({"model": {"model_type": "detr", "backbone": "x/y"}}, "model: backbone is not taken from a file"),
        ({"model": {**VIT, "attn_implementation": "maker/kernel"}}, "attn_implementation is not taken from a file"),
        ({"model": {**VIT, "auto_map": {"AutoModel": "trap.Trap"}}}, "auto_map is not taken from a file"),
        ({"model": {**VIT, "_attn_implementation": "eager"}}, "'_attn_implementation' is no setting"),
        ({"model": {**VIT, "hidden_act": "$__import__('os').abort()"}}, "hidden_act=.* is no setting"),
        ({"model": {**VIT, "more": [{"_target_": "os.abort"}]}}, "more: '_target_' is no setting"),
        ({"model": {**VIT, "hidden_size": 10**9}}, "hidden_size=1000000000 is no setting"),
        ({"model": {**VIT, "num_hidden_layers": 60_000}}, "more than 10000 layers"),
        ({"model": {**VIT, "hidden_act": "no such"}}, "transformers cannot build this model"),
        ({"library": "monai", "model": {"architecture": "UNet"}}, "architecture='UNet' must be one of densenet121"),
    ],
)
def test_what_may_not_come_from_a_file(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = {"library": "transformers", "model": VIT, "image_shape": list(SHAPE), **changes}
    began = time.monotonic()
    with pytest.raises(VividError, match=message) as caught:
        LibraryBackbone(**config)
    assert len(str(caught.value)) <= LONGEST
    save_module(nn.Linear(2, 2), tmp_path / "a.safetensors", kind="library", config=config)
    with pytest.raises(VividError, match=r"a\.safetensors: "):
        load_module(tmp_path / "a.safetensors", BACKBONES)
    assert time.monotonic() - began < 60


def test_a_large_network_takes_no_memory_where_the_file_does_not_hold_it(tmp_path: Path) -> None:
    _, backbone = wrapped(small.vit)
    changed = {**VIT, "hidden_size": 50_000, "intermediate_size": 60_000, "num_hidden_layers": 100}  # a terabyte
    save_module(backbone, tmp_path / "a.safetensors", kind="library", config={**backbone.config, "model": changed})
    with pytest.raises(VividError, match="its tensors are not those of its configuration"):
        load_module(tmp_path / "a.safetensors", BACKBONES)


@pytest.mark.parametrize(("library", "package"), [("timm", "timm"), ("open_clip", "open_clip_torch")])
def test_a_library_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, package: str
) -> None:
    config = {"library": library, "model": {"architecture": "x", "vision_cfg": {}}, "image_shape": list(SHAPE)}
    save_module(nn.Linear(2, 2), tmp_path / "a.safetensors", kind="library", config=config)
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(VividError, match=rf"a\.safetensors: {library} is not installed: pip install {package}$"):
        load_module(tmp_path / "a.safetensors", BACKBONES)


def test_images_of_another_size_are_refused() -> None:
    _, backbone = wrapped(small.resnet)
    with pytest.raises(VividError, match=r"a batch of shape \[2, 3, 64, 64\] does not fit"):
        backbone(images(2, (3, 64, 64)))


def test_what_gives_no_tokens_says_so() -> None:
    import transformers as hf

    config = hf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    model = described(hf.SwinModel(config))
    assert offers("transformers", model) == (False, False)
    with pytest.raises(VividError, match="SwinModel gives no tokens, but a pooled output"):
        LibraryBackbone(library="transformers", model=model, image_shape=SHAPE)
    assert LibraryBackbone(library="transformers", model=model, image_shape=SHAPE, output="pooled").embed_dim == 16


def test_a_bundle_of_a_vit_needs_none_of_it() -> None:
    assert "library.py" not in module_files()
    heavy = re.compile(r"^\s*(import|from) (timm|transformers|open_clip|torchxrayvision|torchvision)", re.MULTILINE)
    assert not [name for name, text in module_files().items() if heavy.search(text)]
