"""Weights of timm, transformers and this package for a ViT: every tensor is used, known to be no part, or an error."""

import logging
from collections.abc import Mapping, Sequence
from math import isqrt
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vivid_monai.errors import VividError
from vivid_monai.networks.checkpoint import CheckpointFile, read_checkpoint, read_json
from vivid_monai.networks.modules import load_module, misfits, some, stored_parts
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT

logger = logging.getLogger(__name__)

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, on the scale [0, 1], by which images are normalised."""

CLS = "cls_token"
POSITIONS = "patch_embedding.position_embeddings"
PATCHES = "patch_embedding.patch_embeddings"

# Our names → theirs, of a 2-D ViT with linear patches whose first position is the CLS token's. {i} is a block; of
# several names, separated by spaces, ours is the stack.
TIMM = {
    CLS: "cls_token",
    POSITIONS: "pos_embed",
    PATCHES: "patch_embed.proj",
    "norm": "norm",
    "blocks.{i}.norm1": "blocks.{i}.norm1",
    "blocks.{i}.attn.qkv": "blocks.{i}.attn.qkv",
    "blocks.{i}.attn.out_proj": "blocks.{i}.attn.proj",
    "blocks.{i}.norm2": "blocks.{i}.norm2",
    "blocks.{i}.mlp.linear1": "blocks.{i}.mlp.fc1",
    "blocks.{i}.mlp.linear2": "blocks.{i}.mlp.fc2",
}
# The names of the modules themselves in transformers 5, as in a plain state_dict().
TRANSFORMERS_5 = {
    CLS: "embeddings.cls_token",
    POSITIONS: "embeddings.position_embeddings",
    PATCHES: "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "blocks.{i}.norm1": "layers.{i}.layernorm_before",
    "blocks.{i}.attn.qkv": " ".join(f"layers.{{i}}.attention.{part}_proj" for part in "qkv"),
    "blocks.{i}.attn.out_proj": "layers.{i}.attention.o_proj",
    "blocks.{i}.norm2": "layers.{i}.layernorm_after",
    "blocks.{i}.mlp.linear1": "layers.{i}.mlp.fc1",
    "blocks.{i}.mlp.linear2": "layers.{i}.mlp.fc2",
}
# What save_pretrained writes, up to and including transformers 5.
_LAYER = "encoder.layer.{i}."
TRANSFORMERS = TRANSFORMERS_5 | {
    "blocks.{i}.norm1": _LAYER + "layernorm_before",
    "blocks.{i}.attn.qkv": " ".join(_LAYER + f"attention.attention.{part}" for part in ("query", "key", "value")),
    "blocks.{i}.attn.out_proj": _LAYER + "attention.output.dense",
    "blocks.{i}.norm2": _LAYER + "layernorm_after",
    "blocks.{i}.mlp.linear1": _LAYER + "intermediate.dense",
    "blocks.{i}.mlp.linear2": _LAYER + "output.dense",
}
# DINOv2's architecture, as save_pretrained writes it: for writing only, as its layer scales have no counterpart here.
DINOV2 = TRANSFORMERS | {
    "blocks.{i}.norm1": _LAYER + "norm1",
    "blocks.{i}.norm2": _LAYER + "norm2",
    "blocks.{i}.mlp.linear1": _LAYER + "mlp.fc1",
    "blocks.{i}.mlp.linear2": _LAYER + "mlp.fc2",
}
NAMINGS = {"patch_embed.": TIMM, "encoder.layer.": TRANSFORMERS, "layers.": TRANSFORMERS_5}
"""What the names of no other naming begin with → the naming."""
HEADS = ("head.", "fc_norm.", "pre_logits.", "pooler.", "classifier.", "embeddings.mask_token")
"""Beginnings of names that are no part of the encoder."""


def load_vit_weights(
    vit: ViT,
    path: str | PathLike,
    *,
    stats: Statistics | None = None,
    colour_stats: Statistics | None = None,
    spd: SPD | None = None,
) -> ViT:
    """Fill a ViT with the weights of a checkpoint, so that it computes what the checkpoint's own network computes.

    Args:
        vit: the network to fill. Its size may differ from the checkpoint's in pixels only: the position embeddings are
            then interpolated (the checkpoint's grid is square unless its `config.json` or metadata says otherwise).
        path: a `.safetensors`, `.bin`, `.pth` or `.pt` file, or a folder with `model.safetensors` or
            `pytorch_model.bin`. Beside transformers' weights, `config.json` is checked too: heads, LayerNorm epsilon,
            activation. Checkpoints of timm say nothing of these; theirs are the presets' heads and 1e-6.
        stats: by which the ViT's images are normalised. Three-channel weights are folded into a one-channel ViT (see
            `fold_channels`), for which this has to be given.
        colour_stats: by which the checkpoint's own images are normalised, for folding; None: what the checkpoint's
            `preprocessor_config.json` (transformers) or `config.json` (timm) says.
        spd: what the ViT's tokens are read through; filled as well where the file has one of the same shape, else
            left as it is, and a message says so.

    Returns:
        The same `vit`, filled. On an error it is left as it was.

    Raises:
        VividError: no such file; an unknown format; tensors missing, extra or of another shape; another architecture;
            colour weights for a grey ViT without both statistics; `colour_stats` where nothing is folded.
    """
    file = read_checkpoint(path)
    called: dict[str, str] = {}  # ours → what the checkpoint calls it
    its_spd: SPD | None = None
    if stored_parts(file) is None:
        state, source, called = _foreign_state(vit, file)
    else:
        saved = load_module(file, {"vit": ViT})
        its, its_spd = saved.module, saved.spd
        keys = (its.config.keys() | vit.config.keys()) - {"img_size", "in_channels", "drop_path", "positions"}
        _refuse(file, {key: (its.config.get(key), vit.config.get(key)) for key in sorted(keys)})
        state, source = {name: tensor.float() for name, tensor in its.state_dict().items()}, its.grid
    weight, channels = state.get(f"{PATCHES}.weight"), vit.config["in_channels"]
    if channels == 1 and weight is not None and weight.ndim == 4 and weight.shape[1] == 3:
        colour_stats = colour_stats or _colour_stats(file)
        if stats is None or colour_stats is None:
            raise VividError(
                f"{file.path}: is for 3 channels, the ViT for 1, and its folder does not say how colour images are "
                "normalised: give their means and deviations (--vit_weights_stats '[[m, m, m], [s, s, s]]'), or "
                "build the ViT with in_channels=3"
            )
        folded = fold_channels(weight, state[f"{PATCHES}.bias"], colour_stats=colour_stats, grey_stats=stats)
        state[f"{PATCHES}.weight"], state[f"{PATCHES}.bias"] = folded
    elif colour_stats is not None:
        raise VividError(f"{file.path}: colour statistics are given, but {channels} channels are wanted: nothing folds")
    try:
        state[POSITIONS] = resize_position_embeddings(state[POSITIONS], source=source, target=vit.grid)
    except VividError as error:
        raise VividError(f"{file.path}: {error}") from error
    found, wanted = ({called.get(name, name): t for name, t in one.items()} for one in (state, vit.state_dict()))
    if wrong := misfits(found, wanted):
        raise VividError(f"{file.path}: does not fit this ViT ({vit.architecture}): {some(wrong, sep='; ')}")
    vit.load_state_dict(state)
    if spd is not None and its_spd is not None:
        if wrong := misfits(its_spd.state_dict(), spd.state_dict()):
            logger.warning(f"{file.path}: its SPD is not used, it has another shape: {some(wrong, sep='; ')}")
        else:
            spd.load_state_dict(its_spd.state_dict())
    return vit


def rename_vit_weights(vit: ViT, naming: Mapping[str, str]) -> dict[str, Tensor]:
    """The ViT's tensors as checkpoints of another library hold them: what `load_vit_weights` reads, the other way.

    Returns:
        Name without prefix → float32 tensor on the CPU; nothing that is ignored on reading.
    """
    state = {name: tensor.detach().float().cpu() for name, tensor in vit.state_dict().items()}
    state[POSITIONS] = torch.cat([torch.zeros_like(state[CLS]), state[POSITIONS]], dim=1)
    return {
        theirs: part.contiguous()
        for ours, names in _sources(naming, len(vit.blocks)).items()
        for theirs, part in zip(names, state[ours].chunk(len(names)), strict=True)
    }


def resize_position_embeddings(embeddings: Tensor, *, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Interpolate position embeddings from one grid of patches to another.

    Bicubic with antialiasing in 2-D, trilinear in 3-D, pixel centres aligned at half positions, computed in float32.
    Where the grids are equal the very same tensor comes back.

    Args:
        embeddings: (1, prod(source), D), the last axis running fastest, without an entry for the CLS token.
        source: the grid the embeddings belong to: (rows, columns) or (depth, rows, columns).
        target: the grid wanted, of as many axes.

    Returns:
        (1, prod(target), D), of the dtype given.

    Raises:
        VividError: the number of embeddings is not that of the source grid.
    """
    source, target = tuple(source), tuple(target)
    if len(source) != len(target) or embeddings.ndim != 3 or embeddings.shape[:2] != (1, torch.Size(source).numel()):
        raise VividError(
            f"position embeddings of shape {tuple(embeddings.shape)} do not fill a grid of "
            f"{' x '.join(map(str, source))}, or have another number of axes than {' x '.join(map(str, target))}"
        )
    if source == target:
        return embeddings
    grid = embeddings.float().transpose(1, 2).unflatten(2, source)
    mode: dict[str, Any] = {"mode": "bicubic", "antialias": True} if len(target) == 2 else {"mode": "trilinear"}
    resized = F.interpolate(grid, size=target, align_corners=False, **mode)
    return resized.flatten(2).transpose(1, 2).to(embeddings.dtype, memory_format=torch.contiguous_format)


def fold_channels(
    weight: Tensor, bias: Tensor, *, colour_stats: Statistics, grey_stats: Statistics
) -> tuple[Tensor, Tensor]:
    """The projection of one grey channel that equals a projection of three equal colour channels.

    A grey image g in [0, 1], repeated over the channels c and normalised as the colour weights expect, is
    x_c = (g - m_c) / s_c. Our ViT sees y = (g - m) / s instead, so x_c = (s y + m - m_c) / s_c, and with it

        Σ_c W_c x_c + b  =  (Σ_c W_c s / s_c) y  +  b + Σ_c Σ_pixels W_c (m - m_c) / s_c :

    the same numbers from one channel, exactly, since patches are not padded.

    Args:
        weight: (D, C, P, P) of the colour projection.
        bias: (D,) of the colour projection.
        colour_stats: of the colour weights, C numbers each.
        grey_stats: of the grey images, one number each.

    Returns:
        weight (D, 1, P, P) and bias (D,), in the dtype given, computed in float64.

    Raises:
        VividError: the statistics do not fit the channels, or a standard deviation is not positive.
    """
    channels = weight.shape[1]
    for name, stats, length in (("colour_stats", colour_stats, channels), ("grey_stats", grey_stats, 1)):
        if len(stats) != 2 or len(stats[0]) != length or len(stats[1]) != length or min(stats[1]) <= 0:
            raise VividError(f"{name}={stats!r} must be (mean, std) of {length} numbers each, std > 0")
    colour_mean, colour_std = (
        torch.tensor(values, dtype=torch.float64).view(1, channels, 1, 1) for values in colour_stats
    )
    grey_mean, grey_std = grey_stats[0][0], grey_stats[1][0]
    scaled = weight.double() / colour_std
    folded = (scaled * grey_std).sum(dim=1, keepdim=True)
    shift = (scaled * (grey_mean - colour_mean)).sum(dim=(1, 2, 3))
    return folded.to(weight.dtype), (bias.double() + shift).to(bias.dtype)


def _sources(naming: Mapping[str, str], depth: int) -> dict[str, list[str]]:
    """Each parameter of our ViT of `depth` blocks → the names of the tensors it is stacked from."""
    return {
        ours.format(i=i) + kind: [name + kind for name in theirs.format(i=i).split()]
        for kind in ("", ".weight", ".bias")
        for i in range(depth)
        for ours, theirs in naming.items()
        if (ours in (CLS, POSITIONS)) == (not kind)
    }


def _foreign_state(vit: ViT, file: CheckpointFile) -> tuple[dict[str, Tensor], tuple[int, ...], dict[str, str]]:
    """Tensors in float32 under our names, their grid, and the file's own names by ours."""
    tensors = {name.removeprefix("vit."): tensor for name, tensor in file.tensors.items()}
    naming = next((naming for marker, naming in NAMINGS.items() if any(n.startswith(marker) for n in tensors)), None)
    if naming is None:
        raise VividError(
            f"{file.path}: no ViT of timm, transformers, nor a file of this package; its first tensors are "
            f"{some(sorted(file.tensors))}"
        )
    if len(vit.grid) != 2 or "stem" in vit.config:
        raise VividError(f"{file.path}: its weights are for images and linear patches, not for this ViT: --stem patch")
    config, patch = file.config if naming is not TIMM else {}, vit.config["patch_size"]
    expected = {
        "num_attention_heads": vit.heads,
        "patch_size": patch,
        "layer_norm_eps": vit.config["norm_eps"],
        "hidden_act": "gelu",
        "model_type": "vit",
    }
    _refuse(file, {key: (config[key], value) for key, value in expected.items() if key in config})
    sources = _sources(naming, len(vit.blocks))
    wanted = {name for names in sources.values() for name in names}
    missing = sorted(wanted - tensors.keys())
    extra = sorted(name for name in tensors.keys() - wanted if not name.startswith(HEADS))
    if missing or extra:
        told = [f"missing: {some(missing)}"] * bool(missing) + [f"not of this ViT: {some(extra)}"] * bool(extra)
        raise VividError(f"{file.path}: does not fit this ViT ({vit.architecture}); {'; '.join(told)}")
    state = {}
    for ours, names in sources.items():
        shapes = {name: tuple(tensors[name].shape) for name in names}
        if len(set(shapes.values())) != 1:
            raise VividError(f"{file.path}: {some([f'{n} {s}' for n, s in shapes.items()])} differ in shape")
        state[ours] = torch.cat([tensors[name].float() for name in names])
    cls, positions = state[CLS], state[POSITIONS]
    if cls.shape != (1, 1, vit.embed_dim) or positions.shape[::2] != (1, vit.embed_dim):
        raise VividError(
            f"{file.path}: {CLS} {tuple(cls.shape)} and {POSITIONS} {tuple(positions.shape)} are not of the width "
            f"{vit.embed_dim} of this ViT ({vit.architecture})"
        )
    state[CLS], state[POSITIONS] = cls + positions[:, :1], positions[:, 1:]
    count, side, size = positions.shape[1] - 1, isqrt(positions.shape[1] - 1), config.get("image_size")
    if size is None and side * side != count:
        raise VividError(f"{file.path}: {count} position embeddings are no square grid: give the image size")
    sizes = [size] * 2 if isinstance(size, int) else size
    grid = tuple(pixels // patch for pixels in sizes) if sizes else (side, side)
    return state, grid, {ours: " + ".join(names) for ours, names in sources.items()}


def _refuse(file: CheckpointFile, pairs: dict[str, tuple[Any, Any]]) -> None:
    if wrong := [f"{key}={its!r}, the ViT has {ours!r}" for key, (its, ours) in pairs.items() if its != ours]:
        raise VividError(f"{file.path}: its configuration says {'; '.join(wrong)}: build the ViT accordingly")


def _colour_stats(file: CheckpointFile) -> Statistics | None:
    """What the files beside a checkpoint say of the normalisation of its images."""
    processor = read_json(file.path.parent, "preprocessor_config.json")
    if processor.get("do_normalize") is False:
        return [0.0] * 3, [1.0] * 3
    timm = file.config.get("pretrained_cfg")
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if mean is None and isinstance(timm, dict):
        mean, std = timm.get("mean"), timm.get("std")
    return None if mean is None or std is None else (mean, std)
