"""Weights of a ViT from and to disk: strict, exact, and with what belongs to them.

Three formats are read: timm's and transformers' ViT checkpoints, and our own, which carries the network's configuration
and the preprocessing its images need. Nothing is matched by luck: a missing, extra or misshaped tensor is an error.
"""

import json
from collections.abc import Mapping, Sequence
from math import isqrt
from os import PathLike
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from vivid_monai.errors import VividError
from vivid_monai.networks.checkpoint import (
    CLS,
    NAMINGS,
    PATCHES,
    POSITIONS,
    VIVID,
    CheckpointFile,
    Naming,
    read_checkpoint,
    recognise,
)
from vivid_monai.networks.vit import PRESETS, ViT
from vivid_monai.storage.files import whole_file


def square_grid(positions: int) -> tuple[int, int]:
    """The (rows, columns) of a square grid of `positions` patches; VividError where no square has that many."""
    side = isqrt(positions)
    if side * side != positions:
        raise VividError(f"{positions} position embeddings are no square grid: give the checkpoint's image size")
    return side, side


def resize_position_embeddings(embeddings: Tensor, *, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Interpolate position embeddings from one grid of patches to another.

    Bicubic with antialiasing, pixel centres aligned at half positions, computed in float32. Where the grids are equal
    the very same tensor comes back.

    Args:
        embeddings: (1, rows * columns, D), row by row, without an entry for the CLS token.
        source: (rows, columns) of the grid the embeddings belong to.
        target: (rows, columns) wanted.

    Returns:
        (1, target rows * target columns, D), of the dtype given.

    Raises:
        VividError: the number of embeddings is not that of the source grid.
    """
    if embeddings.ndim != 3 or embeddings.shape[:2] != (1, source[0] * source[1]):
        raise VividError(
            f"position embeddings of shape {tuple(embeddings.shape)} do not fill a grid of {source[0]} x {source[1]}"
        )
    if source == target:
        return embeddings
    plane = embeddings.float().transpose(1, 2).unflatten(2, source)
    resized = F.interpolate(plane, size=target, mode="bicubic", antialias=True, align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(embeddings.dtype, memory_format=torch.contiguous_format)


Statistics = tuple[Sequence[float], Sequence[float]]


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
        colour_stats: mean and standard deviation, C numbers each, on the scale [0, 1], of the colour weights.
        grey_stats: mean and standard deviation, one number each, with which the grey images are normalised.

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


FORMAT = "vivid-vit"
VERSION = 1


def load_vit_weights(
    vit: ViT,
    path: str | PathLike,
    *,
    colour_stats: Statistics | None = None,
    grey_stats: Statistics | None = None,
) -> ViT:
    """Fill a ViT with the weights of a checkpoint, so that it computes what the checkpoint's own network computes.

    Args:
        vit: the network to fill. Its size may differ from the checkpoint's in pixels only: the position embeddings are
            then interpolated (the checkpoint's grid is square unless its `config.json` or metadata says otherwise).
        path: a `.safetensors`, `.bin`, `.pth` or `.pt` file, or a folder with `model.safetensors` or
            `pytorch_model.bin`. Beside transformers' weights, `config.json` is checked too: heads, LayerNorm epsilon,
            activation. Checkpoints of timm say nothing of these; theirs are the presets' heads and 1e-6.
        colour_stats: (mean, std), three numbers each, that the checkpoint's colour images are normalised with on the
            scale [0, 1]. Given together with `grey_stats`, three-channel weights are folded into a one-channel ViT
            (see `fold_channels`); without them such a pair is refused.
        grey_stats: (mean, std), one number each, that the ViT's grey images are normalised with.

    Returns:
        The same `vit`, filled. On an error it is left as it was.

    Raises:
        VividError: no such file; an unknown format; tensors missing, extra or of another shape; another architecture.
    """
    file = read_checkpoint(path)
    naming = recognise(file.tensors)
    if naming is None:
        known = ", ".join(sorted({naming.library for naming in NAMINGS}))
        raise VividError(f"{file.path}: no ViT of {known}; its first tensors are {_some(sorted(file.tensors))}")
    source_size = _check_architecture(vit, file, naming)
    state = _gather(vit, file, naming)
    stats = None if colour_stats is None or grey_stats is None else (colour_stats, grey_stats)
    if (colour_stats is None) != (grey_stats is None):
        raise VividError("colour_stats and grey_stats are given together or not at all")
    _fit_channels(vit, file, state, stats)
    _fit_positions(vit, file, state, naming, source_size)
    sources = naming.sources(len(vit.blocks))
    wrong = [
        f"{' + '.join(sources[name])} has shape {tuple(state[name].shape)}, the ViT wants {tuple(tensor.shape)}"
        for name, tensor in vit.state_dict().items()
        if state[name].shape != tensor.shape
    ]
    if wrong:
        raise VividError(f"{file.path}: does not fit this ViT ({vit.config['preset']}): {_some(wrong)}")
    vit.load_state_dict(state)
    return vit


def save_vit(
    vit: ViT,
    path: str | PathLike,
    *,
    preprocess: Mapping[str, Any],
    fields: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a ViT with its configuration as one safetensors file, whole or not at all.

    Args:
        vit: the network.
        path: the file to write, ending in `.safetensors`; its folder is made where missing.
        preprocess: what an image must go through before this ViT; JSON-serialisable. Without it weights mean nothing.
        fields: the findings it was pretrained on, in order.
        extra: anything else worth keeping (JSON-serialisable): data card, seed, versions.

    Raises:
        VividError: `vit` is none, `preprocess` is empty, something is not JSON, or the file cannot be written.
    """
    if not isinstance(vit, ViT):
        raise VividError(f"a {type(vit).__name__} cannot be saved as a ViT: give the encoder itself")
    if not str(path).endswith(".safetensors") or not preprocess:
        raise VividError(f"{path}: a ViT is saved as .safetensors together with its preprocessing")
    parts = {"config": vit.config, "preprocess": preprocess, "fields": fields and list(fields), "extra": extra or {}}
    try:
        metadata = {name: json.dumps(value) for name, value in parts.items()}
    except TypeError as error:
        raise VividError(f"{path}: preprocess, fields and extra must be JSON: {error}") from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vit.state_dict().items()}
    with whole_file(path) as part:
        part.write_bytes(save(tensors, metadata={"format": FORMAT, "version": str(VERSION), **metadata}))


def load_vit(path: str | PathLike) -> tuple[ViT, dict[str, Any]]:
    """Read a file of `save_vit`.

    Returns:
        The ViT, on the CPU and in training mode as any new module, and its metadata: "version", "config", "preprocess",
        "fields" (or None) and "extra".

    Raises:
        VividError: no such file, broken, not written by `save_vit`, or its tensors are not those of its configuration.
    """
    file = read_checkpoint(path)
    metadata = _own_metadata(file)
    try:
        vit = ViT(**metadata["config"])
    except TypeError as error:
        raise VividError(f"{file.path}: its configuration is not one of a ViT: {error}") from error
    return load_vit_weights(vit, file.path), metadata


def rename_vit_weights(vit: ViT, naming: Naming) -> dict[str, Tensor]:
    """The ViT's tensors as checkpoints of another library hold them: what `load_vit_weights` reads, the other way.

    Returns:
        Name without prefix → float32 tensor on the CPU; nothing that is ignorable on reading.
    """
    state = {name: tensor.detach().float().cpu() for name, tensor in vit.state_dict().items()}
    if naming.positions_with_cls:
        state[POSITIONS] = torch.cat([torch.zeros_like(state[CLS]), state[POSITIONS]], dim=1)
    return {
        theirs: part.contiguous()
        for ours, names in naming.sources(len(vit.blocks)).items()
        for theirs, part in zip(names, state[ours].chunk(len(names)), strict=True)
    }


def _own_metadata(file: CheckpointFile) -> dict[str, Any]:
    stored = file.metadata
    if stored.get("format") != FORMAT:
        raise VividError(f"{file.path}: was not written by save_vit; load other weights with load_vit_weights")
    if stored.get("version") != str(VERSION):
        raise VividError(f"{file.path}: has version {stored.get('version')!r}, this package reads {VERSION}; update it")
    try:
        parts = {name: json.loads(stored[name]) for name in ("config", "preprocess", "fields", "extra")}
    except (KeyError, ValueError) as error:
        raise VividError(f"{file.path}: its metadata is broken ({error!r})") from error
    if not isinstance(parts["config"], dict):
        raise VividError(f"{file.path}: its metadata is broken (config is a {type(parts['config']).__name__})")
    return {"version": VERSION, **parts}


def _check_architecture(vit: ViT, file: CheckpointFile, naming: Naming) -> tuple[int, int] | None:
    """Compare what tensors cannot tell; returns the (height, width) of the checkpoint's images where it is said."""
    config: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    if naming is VIVID:
        config = _own_metadata(file)["config"]
        expected = {key: vit.config[key] for key in ("preset", "patch_size", "norm_eps")}
        size = config.get("img_size")
    elif naming.library == "transformers":
        config = file.config
        expected = {
            "num_attention_heads": PRESETS[vit.config["preset"]].heads,
            "patch_size": vit.config["patch_size"],
            "layer_norm_eps": vit.config["norm_eps"],
            "hidden_act": "gelu",
            "model_type": "vit",
        }
        size = config.get("image_size")
    else:
        size = None
    wrong = [f"{k}={config[k]!r}, the ViT has {v!r}" for k, v in expected.items() if k in config and config[k] != v]
    if wrong:
        raise VividError(f"{file.path}: its configuration says {'; '.join(wrong)}: build the ViT accordingly")
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _gather(vit: ViT, file: CheckpointFile, naming: Naming) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names, in float32; every tensor is used, known to be no part, or an error."""
    tensors = {naming.strip(name): tensor for name, tensor in file.tensors.items()}
    sources = naming.sources(len(vit.blocks))
    wanted = {name for names in sources.values() for name in names}
    missing = sorted(wanted - tensors.keys())
    extra = sorted(name for name in tensors.keys() - wanted if not naming.may_ignore(name))
    if missing or extra:
        told = [f"missing: {_some(missing)}"] * bool(missing) + [f"not of this ViT: {_some(extra)}"] * bool(extra)
        raise VividError(f"{file.path}: does not fit this ViT ({vit.config['preset']}); {'; '.join(told)}")
    state = {}
    for ours, names in sources.items():
        shapes = {name: tuple(tensors[name].shape) for name in names}
        if len(set(shapes.values())) != 1:
            raise VividError(
                f"{file.path}: {_some([f'{name} {shape}' for name, shape in shapes.items()])} differ in shape"
            )
        state[ours] = torch.cat([tensors[name].float() for name in names])
    return state


def _fit_channels(
    vit: ViT, file: CheckpointFile, state: dict[str, Tensor], stats: tuple[Statistics, Statistics] | None
) -> None:
    weight, channels = state[f"{PATCHES}.weight"], vit.config["in_channels"]
    given = weight.shape[1] if weight.ndim == 4 else channels
    foldable = given == 3 and channels == 1
    if stats is not None:
        if not foldable:
            raise VividError(f"{file.path}: statistics are given, but {given} channels into {channels} fold nothing")
        folded = fold_channels(weight, state[f"{PATCHES}.bias"], colour_stats=stats[0], grey_stats=stats[1])
        state[f"{PATCHES}.weight"], state[f"{PATCHES}.bias"] = folded
    elif foldable:
        raise VividError(
            f"{file.path}: is for 3 channels, the ViT for 1: "
            "build it with in_channels=3, or give colour_stats and grey_stats"
        )


def _fit_positions(
    vit: ViT, file: CheckpointFile, state: dict[str, Tensor], naming: Naming, size: tuple[int, int] | None
) -> None:
    positions = state[POSITIONS]
    if positions.ndim != 3 or positions.shape[::2] != (1, vit.embed_dim) or state[CLS].shape != (1, 1, vit.embed_dim):
        raise VividError(
            f"{file.path}: {POSITIONS} has shape {tuple(positions.shape)} and {CLS} {tuple(state[CLS].shape)}; "
            f"a ViT of preset {vit.config['preset']} has width {vit.embed_dim}"
        )
    if naming.positions_with_cls:
        state[CLS] = state[CLS] + positions[:, :1]
        positions = positions[:, 1:]
    patch = vit.config["patch_size"]
    try:
        source = square_grid(positions.shape[1]) if size is None else (size[0] // patch, size[1] // patch)
        state[POSITIONS] = resize_position_embeddings(positions, source=source, target=vit.grid)
    except VividError as error:
        raise VividError(f"{file.path}: {error}") from error


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
