"""The ViT: what comes out, what it is made of, how it exports."""

import json
from itertools import pairwise

import pytest
import torch
from monai.networks.layers import DropPath
from torch import nn

from tests.tolerance import close
from vivid_monai.errors import VividError
from vivid_monai.networks.vit import PRESETS, ViT

pytestmark = pytest.mark.numeric


@pytest.fixture
def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=(32, 48), preset="micro").eval()


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("nano", 520_576), ("micro", 1_313_664), ("tiny", 5_524_416), ("small", 21_665_664), ("base", 85_798_656)],
)
def test_presets_have_their_published_sizes(preset: str, parameters: int) -> None:
    """The encoders of DeiT-Ti, DeiT-S and ViT-B/16, which hold one more vector: the position of the CLS token."""
    with torch.device("meta"):
        vit = ViT(preset=preset, in_channels=3)
    assert sum(p.numel() for p in vit.parameters()) == parameters - vit.embed_dim
    assert vit(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 197, PRESETS[preset].width)
    assert (vit.embed_dim, vit.grid) == (PRESETS[preset].width, (14, 14))


def test_tokens_are_normalised_and_patches_run_row_by_row(vit: ViT) -> None:
    image = torch.zeros(1, 1, 32, 48)
    tokens = vit(image)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(1, 7), **close(depth=1))
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(1, 7), atol=1e-3, rtol=0)
    image[..., 16:, 32:] = 1.0  # second row, third column: patch 1 * 3 + 2
    changed = (vit.patch_embedding(image) != vit.patch_embedding(torch.zeros_like(image))).any(-1)
    assert changed[0].nonzero().flatten().tolist() == [5]


def test_blocks_equal_the_reference_transformer(vit: ViT) -> None:
    """A block against PyTorch's own pre-norm encoder layer with the same weights."""
    ours = vit.blocks[0]
    layer = nn.TransformerEncoderLayer(128, 4, 512, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.out_proj.", "linear": "mlp.linear"}
    state = ours.state_dict()
    for theirs, name in names.items():
        state = {key.replace(name, theirs): value for key, value in state.items()}
    layer.load_state_dict(state)
    tokens = torch.randn(2, 7, 128)
    torch.testing.assert_close(ours(tokens), layer(tokens), **close(depth=1, scale=4))


def test_attention_is_fused_and_never_dropped(vit: ViT) -> None:
    assert {(block.attn.use_flash_attention, block.attn.dropout_rate) for block in vit.blocks} == {(True, 0.0)}


def test_drop_path_grows_with_depth_and_acts_in_training_only() -> None:
    torch.manual_seed(0)
    vit = ViT(img_size=32, preset="micro", drop_path=0.5)
    rates = [block.drop_path.drop_prob if isinstance(block.drop_path, DropPath) else 0.0 for block in vit.blocks]
    assert rates[0] == 0
    assert rates[-1] == 0.5
    assert [b - a for a, b in pairwise(rates)] == pytest.approx([0.1] * 5)
    image = torch.rand(4, 1, 32, 32)
    assert not torch.equal(vit(image), vit(image))
    vit.eval()
    assert torch.equal(vit(image), vit(image))


def test_every_parameter_gets_a_gradient(vit: ViT) -> None:
    vit(torch.rand(2, 1, 32, 48)).square().mul(torch.randn(2, 7, 128)).sum().backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_initialisation_is_truncated_normal() -> None:
    torch.manual_seed(0)
    vit = ViT(preset="micro")
    for name in ("cls_token", "patch_embedding.position_embeddings", "blocks.3.attn.qkv.weight"):
        assert vit.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.2)
    patches = vit.patch_embedding.patch_embeddings
    assert patches.weight.std().item() == pytest.approx(1 / 16, rel=0.1)
    assert not patches.bias.any()


def test_config_is_json_and_builds_the_network_again(vit: ViT) -> None:
    again = ViT(**json.loads(json.dumps(vit.config)))
    again.load_state_dict(vit.state_dict())
    image = torch.rand(1, 1, 32, 48)
    assert torch.equal(again.eval()(image), vit(image))
    assert again.config == vit.config


VOLUME = {"img_size": (16, 32, 24), "patch_size": (4, 16, 8), "spatial_dims": 3, "width": 64, "depth": 2, "heads": 4}


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_a_volume_is_tokens_on_a_grid_of_three_axes(stem: str) -> None:
    torch.manual_seed(0)
    vit = ViT(**VOLUME, stem=stem)
    assert (vit.grid, vit.prefix, vit.embed_dim, vit.heads) == ((4, 2, 3), 1, 64, 4)
    assert (vit.image_shape, vit.architecture) == ((1, 16, 32, 24), "vit-64x2x4/4x16x8-3d")
    tokens = vit(torch.randn(2, *vit.image_shape))
    assert tokens.shape == (2, 25, 64)
    (tokens * torch.randn(tokens.shape)).sum().backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.any()] == []
    if stem == "patch":
        image = torch.zeros(1, *vit.image_shape)
        before = vit.patch_embedding(image)
        image[..., 4:8, 16:, 8:16] = 1.0  # patch (1, 1, 1)
        changed = (vit.patch_embedding(image) != before).any(-1)
        assert changed[0].nonzero().flatten().tolist() == [(1 * 2 + 1) * 3 + 1]


def test_positions_may_start_from_sines_of_the_place() -> None:
    vit = ViT(img_size=(32, 64), preset="nano", positions="sincos")
    own = vit.patch_embedding.position_embeddings
    assert own.requires_grad
    rates = 1e4 ** (-torch.arange(32) / 32)
    row, column = 1, 2
    expected = torch.cat([wave(place * rates) for place in (column, row) for wave in (torch.sin, torch.cos)])
    torch.testing.assert_close(own[0, row * 4 + column], expected, **close(depth=1))
    volume = ViT(**VOLUME | {"width": 96}, positions="sincos").patch_embedding.position_embeddings[0]
    assert torch.pdist(volume).min() > 0.1


def test_explicit_sizes_equal_a_preset_and_the_config_keeps_what_differs() -> None:
    names = {"img_size", "patch_size", "in_channels", "preset", "drop_path", "norm_eps"}  # of files from the beginning
    same = ViT(img_size=32, preset="micro", width=128, depth=6, heads=4)
    assert set(same.config) == names
    assert same.config == ViT(img_size=32, preset="micro").config
    for arguments in (VOLUME | {"stem": "conv"}, {"img_size": 32, "preset": "micro", "depth": 2}):
        vit = ViT(**arguments)
        again = ViT(**json.loads(json.dumps(vit.config)))
        assert again.config == vit.config
        assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in vit.named_parameters()}


def test_the_epsilon_reaches_every_norm() -> None:
    vit = ViT(img_size=32, preset="micro", norm_eps=1e-12)
    assert {module.eps for module in vit.modules() if isinstance(module, nn.LayerNorm)} == {1e-12}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "micro, tiny"),
        ({"img_size": 230}, "multiple of patch_size"),
        ({"img_size": 8}, "multiple of patch_size"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"in_channels": 0}, "in_channels"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"preset": None, "width": 64, "depth": 2}, "or give width, depth and heads"),
        ({"preset": "micro", "heads": 3}, "multiple of the heads"),
        ({"spatial_dims": 1}, "spatial_dims=1"),
        ({"img_size": (32, 32), "spatial_dims": 3}, "3 numbers, one per axis"),
        ({"stem": "conv", "patch_size": 14}, "powers of two"),
        ({"positions": "cosine"}, "normal or sincos"),
        ({"positions": "sincos", "width": 62, "heads": 2}, "a multiple of 4, got 62"),
    ],
)
def test_bad_arguments_are_told(arguments: dict, message: str) -> None:
    with pytest.raises(VividError, match=message):
        ViT(**arguments)


def test_images_of_another_size_are_refused(vit: ViT) -> None:
    with pytest.raises(VividError, match=r"\[1, 1, 48, 32\].*\(1, 32, 48\)"):
        vit(torch.rand(1, 1, 48, 32))


def test_compiles_without_graph_breaks(vit: ViT) -> None:
    image = torch.rand(2, 1, 32, 48)
    compiled = torch.compile(vit, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), vit(image), **close(depth=6, scale=4))
