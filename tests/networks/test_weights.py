"""Foreign checkpoints: equal to the reference forward, or refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from tests.tolerance import close
from vivid_monai.errors import VividError
from vivid_monai.networks.modules import save_module
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT
from vivid_monai.networks.weights import (
    POSITIONS,
    fold_channels,
    load_vit_weights,
    resize_position_embeddings,
)

pytestmark = pytest.mark.numeric

EPS = 1e-6
COLOUR = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
GREY = ([0.53], [0.27])


def reference(*, image_size: int = 32, seed: int = 0, **overrides: object) -> ViTModel:
    """A transformers ViT of our micro preset whose every parameter is random."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}
    model = ViTModel(ViTConfig(image_size=image_size, layer_norm_eps=EPS, **shape, **overrides)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def micro(**overrides: object) -> ViT:
    return ViT(**{"img_size": 32, "preset": "micro", "in_channels": 3, "norm_eps": EPS} | overrides).eval()


def to_timm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Old transformers names rewritten to timm's, q, k and v stacked."""
    renames = [
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("encoder.layer.", "blocks."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("layernorm.", "norm."),
        ("pooler.dense", "head"),
    ]
    timm = {}
    for name, tensor in state.items():
        if ".query." in name:
            stacked = torch.cat([state[name.replace("query", part)] for part in ("query", "key", "value")])
            timm[name.replace("attention.attention.query", "attn.qkv").replace("encoder.layer", "blocks")] = stacked
        elif ".key." not in name and ".value." not in name:
            for old, new in renames:
                name = name.replace(old, new)
            timm[name] = tensor
    return timm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What save_pretrained writes."""
    path = tmp_path_factory.mktemp("reference")
    reference().save_pretrained(path)
    return path


def assert_equals_reference(vit: ViT, model: ViTModel) -> None:
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(vit(image), model(image).last_hidden_state, **close(depth=6, scale=4))


def test_a_saved_transformers_model_computes_the_same(folder: Path) -> None:
    assert_equals_reference(load_vit_weights(micro(), folder), reference())


def test_module_names_of_transformers_5_are_read_too(tmp_path: Path) -> None:
    torch.save(reference().state_dict(), tmp_path / "model.pth")
    assert any(name.startswith("layers.0.attention.q_proj") for name in reference().state_dict())
    assert_equals_reference(load_vit_weights(micro(), tmp_path / "model.pth"), reference())


def test_a_classifier_is_read_without_its_head(tmp_path: Path) -> None:
    model = ViTForImageClassification(reference().config).eval()
    model.save_pretrained(tmp_path)
    assert any(name.startswith("classifier") for name in load_file(tmp_path / "model.safetensors"))
    assert_equals_reference(load_vit_weights(micro(), tmp_path), model.vit)


def test_timm_names_and_stacked_attention(folder: Path, tmp_path: Path) -> None:
    state = to_timm(load_file(folder / "model.safetensors"))
    assert {"head.weight", "blocks.5.attn.qkv.bias", "norm.weight"} <= state.keys()
    save_file(state, tmp_path / "timm.safetensors")
    assert_equals_reference(load_vit_weights(micro(), tmp_path / "timm.safetensors"), reference())


@pytest.mark.parametrize(("size", "other"), [(32, 64), (64, 32)])
def test_other_image_sizes_get_interpolated_positions(tmp_path: Path, size: int, other: int) -> None:
    model = reference(image_size=size)
    # A position embedding that is constant over the grid stays itself at any size: the whole forward must agree.
    with torch.no_grad():
        model.embeddings.position_embeddings[:, 1:] = model.embeddings.position_embeddings[:, 1:2].clone()
    model.save_pretrained(tmp_path)
    vit = load_vit_weights(micro(img_size=other), tmp_path)
    image = torch.randn(1, 3, other, other)
    with torch.no_grad():
        expected = model(image, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(vit(image), expected, **close(depth=6, scale=4))


def test_a_rectangular_checkpoint_says_so_in_its_config(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}
    model = ViTModel(ViTConfig(image_size=(16, 64), layer_norm_eps=EPS, **shape)).eval()
    model.save_pretrained(tmp_path)
    vit = load_vit_weights(micro(img_size=(16, 64)), tmp_path)
    image = torch.randn(1, 3, 16, 64)
    with torch.no_grad():
        torch.testing.assert_close(vit(image), model(image).last_hidden_state, **close(depth=6, scale=4))


def test_colour_weights_are_folded_exactly_into_a_grey_vit(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VividError, match=r"for 3 channels, the ViT for 1.*vit_weights_stats"):
        load_vit_weights(micro(in_channels=1), folder, stats=GREY)
    with pytest.raises(VividError, match="nothing folds"):
        load_vit_weights(micro(), folder, colour_stats=COLOUR, stats=GREY)
    image = torch.rand(2, 1, 32, 32)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in COLOUR)
    with torch.no_grad():
        expected = reference()((image - mean) / std).last_hidden_state
    vits = [load_vit_weights(micro(in_channels=1), folder, colour_stats=COLOUR, stats=GREY)]
    for name, content in (  # what transformers and timm write beside the weights
        ("preprocessor_config.json", {"image_mean": COLOUR[0], "image_std": COLOUR[1]}),
        ("config.json", {"architecture": "vit", "pretrained_cfg": {"mean": COLOUR[0], "std": COLOUR[1]}}),
    ):
        (tmp_path / name).mkdir()
        save_file(load_file(folder / "model.safetensors"), tmp_path / name / "model.safetensors")
        (tmp_path / name / name).write_text(json.dumps(content))
        vits.append(load_vit_weights(micro(in_channels=1), tmp_path / name, stats=GREY))
    for vit in vits:
        with torch.no_grad():
            found = vit((image - GREY[0][0]) / GREY[1][0])
        torch.testing.assert_close(found, expected, **close(depth=6, scale=4))


def edit(state: dict[str, torch.Tensor], kind: str) -> None:
    key = "encoder.layer.2.attention.attention.key.weight"
    if kind == "missing":
        del state[key]
    elif kind == "extra":
        state["encoder.layer.6.layernorm_before.weight"] = torch.ones(128)
    elif kind == "foreign":
        state["encoder.layer.0.lambda1"] = torch.ones(128)
    elif kind == "half of qkv":
        state[key] = state[key][:64].clone()
    elif kind == "shape":
        state["encoder.layer.1.output.dense.weight"] = torch.ones(128, 256)
    elif kind == "width":
        state["embeddings.cls_token"] = torch.ones(1, 1, 64)
    elif kind == "grid":
        state["embeddings.position_embeddings"] = torch.ones(1, 9, 128)
    elif kind == "unknown":
        for name in list(state):
            state[f"backbone.{name}"] = state.pop(name)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"missing: encoder\.layer\.2\.attention\.attention\.key\.weight"),
        ("extra", r"not of this ViT: encoder\.layer\.6\.layernorm_before\.weight"),
        ("foreign", r"not of this ViT: encoder\.layer\.0\.lambda1"),
        ("half of qkv", r"layer\.2\.attention\.attention\.key\.weight \(64, 128\).*differ"),
        ("shape", r"layer\.1\.output\.dense\.weight has shape \(128, 256\), not \(128, 512\)"),
        ("width", r"cls_token \(1, 1, 64\)"),
        ("grid", "8 position embeddings are no square"),
        ("unknown", r"no ViT of timm, transformers, nor.*backbone\."),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(
    folder: Path, tmp_path: Path, kind: str, message: str
) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state, kind)
    save_file(state, tmp_path / "edited.safetensors")
    vit = micro()
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    with pytest.raises(VividError, match=message) as caught:
        load_vit_weights(vit, tmp_path / "edited.safetensors")
    assert str(tmp_path / "edited.safetensors") in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"norm_eps": 1e-12}, "layer_norm_eps=1e-06, the ViT has 1e-12"),
        ({"patch_size": 8}, "patch_size=16, the ViT has 8"),
        ({"preset": "tiny"}, "num_attention_heads=4, the ViT has 3"),
    ],
)
def test_another_architecture_is_told_from_the_config(folder: Path, overrides: dict, message: str) -> None:
    with pytest.raises(VividError, match=message):
        load_vit_weights(micro(**overrides), folder)


def test_another_preset_without_config_is_told_from_the_tensors(folder: Path, tmp_path: Path) -> None:
    save_file(to_timm(load_file(folder / "model.safetensors")), tmp_path / "timm.safetensors")
    with pytest.raises(VividError, match=r"missing: blocks\.10\."):
        load_vit_weights(micro(preset="tiny"), tmp_path / "timm.safetensors")


def test_one_grey_channel_equals_three_equal_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(8, generator=generator, dtype=torch.float64)
    grey = torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in COLOUR)
    expected = F.conv2d((grey - mean) / std, weight, bias, stride=4)
    folded, shifted = fold_channels(weight, bias, colour_stats=COLOUR, grey_stats=GREY)
    found = F.conv2d((grey - GREY[0][0]) / GREY[1][0], folded, shifted, stride=4)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("colour", "grey", "name"),
    [(GREY, GREY, "colour_stats"), (COLOUR, COLOUR, "grey_stats"), (COLOUR, ([0.5], [0.0]), "grey_stats")],
)
def test_statistics_that_do_not_fit_are_refused(colour: tuple, grey: tuple, name: str) -> None:
    with pytest.raises(VividError, match=name):
        fold_channels(torch.zeros(2, 3, 4, 4), torch.zeros(2), colour_stats=colour, grey_stats=grey)


def test_the_same_grid_gives_the_same_tensor() -> None:
    embeddings = torch.randn(1, 12, 5)
    assert resize_position_embeddings(embeddings, source=(3, 4), target=(3, 4)) is embeddings


@pytest.mark.parametrize("target", [(24, 24), (7, 7), (20, 9)])
def test_a_plane_that_is_linear_in_rows_and_columns_stays_so(target: tuple[int, int]) -> None:
    """Half-pixel bicubic interpolation reproduces linear functions away from the border."""

    def plane(rows: int, columns: int) -> torch.Tensor:
        y = (torch.arange(rows) + 0.5) / rows
        x = (torch.arange(columns) + 0.5) / columns
        return torch.stack([y[:, None] + 0 * x, 0 * y[:, None] + x, 2 * y[:, None] - x], dim=-1)

    resized = resize_position_embeddings(plane(14, 14).reshape(1, -1, 3), source=(14, 14), target=target)
    inside = (slice(target[0] // 3, -(target[0] // 3)), slice(target[1] // 3, -(target[1] // 3)))
    torch.testing.assert_close(resized.reshape(*target, 3)[inside], plane(*target)[inside], atol=2e-3, rtol=0)


def test_a_plane_in_three_axes_stays_so() -> None:
    """Trilinear interpolation to a finer grid reproduces linear functions between the first and the last centre."""

    def volume(*sides: int) -> torch.Tensor:
        axes = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in sides), indexing="ij")
        return torch.stack([axes[0], axes[1], 2 * axes[2] - axes[0]], dim=-1)

    resized = resize_position_embeddings(volume(4, 6, 5).reshape(1, -1, 3), source=(4, 6, 5), target=(8, 12, 10))
    inside = (slice(1, -1),) * 3
    torch.testing.assert_close(resized.reshape(8, 12, 10, 3)[inside], volume(8, 12, 10)[inside], **close(depth=1))
    with pytest.raises(VividError, match="number of axes"):
        resize_position_embeddings(torch.zeros(1, 8, 3), source=(2, 2, 2), target=(4, 4))


def test_a_volume_of_another_size_gets_interpolated_positions(tmp_path: Path) -> None:
    config = {"patch_size": 8, "spatial_dims": 3, "preset": "micro", "depth": 1}
    first = ViT(img_size=(16, 16, 24), **config)
    save_module(first, tmp_path / "vit.safetensors", kind="vit")
    vit = load_vit_weights(ViT(img_size=(16, 32, 24), **config), tmp_path / "vit.safetensors")
    ours, theirs = vit.state_dict(), first.state_dict()
    assert ours.pop(POSITIONS).shape == (1, 24, 128)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    foreign = reference()
    foreign.save_pretrained(tmp_path / "foreign")
    with pytest.raises(VividError, match="not for this ViT"):
        load_vit_weights(ViT(img_size=(16, 32, 24), **config), tmp_path / "foreign")


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(VividError, match="grid of 3 x 3"):
        resize_position_embeddings(torch.zeros(1, 10, 4), source=(3, 3), target=(2, 2))


def test_a_start_from_our_file_fills_the_read_out_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    ours, spd, path = micro(), SPD(128, groups=2), tmp_path / "vit.safetensors"
    save_module(ours, path, kind="vit", spd=spd, pool="spd")
    started = SPD(128, groups=2, dropout=0.1)
    load_vit_weights(micro(), path, spd=started)
    assert torch.equal(started.queries, spd.queries)
    other = SPD(128, groups=3)
    before = other.queries.clone()
    filled = load_vit_weights(micro(), path, spd=other)
    assert torch.equal(filled.cls_token, ours.cls_token)
    assert torch.equal(other.queries, before)
    assert "its SPD is not used" in caplog.text
