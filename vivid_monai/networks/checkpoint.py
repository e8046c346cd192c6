"""What the parameters of one and the same ViT are called in the checkpoints of different libraries."""

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vivid_monai.errors import VividError

FOLDER_FILES = ("pretrained_vit.safetensors", "model.safetensors", "pytorch_model.bin")
PICKLED = (".bin", ".pth", ".pt")


@dataclass(frozen=True)
class CheckpointFile:
    """Tensors by name, the strings stored with them, and the `config.json` beside them ({} where there is none)."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any]


def read_checkpoint(path: str | PathLike) -> CheckpointFile:
    """Read a `.safetensors`, `.bin`, `.pth` or `.pt` file, or the folder that holds one, onto the CPU.

    Pickled files are read by PyTorch's restricted loader, which runs no code; a state dict wrapped once as
    `{"state_dict": …}` or `{"model": …}` is unwrapped.

    Raises:
        VividError: there is no such file, it is of another kind, broken, or holds anything but tensors.
    """
    file = _find(Path(path))
    metadata: dict[str, str] = {}
    if file.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(file)
    elif file.suffix in PICKLED:
        tensors = _read_pickled(file)
    else:
        raise VividError(f"{file}: weights are read from .safetensors, {', '.join(PICKLED)}; convert the file to one")
    return CheckpointFile(path=file, tensors=tensors, metadata=metadata, config=_read_config(file.parent))


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise VividError(f"{path}: no such file or folder; weights are never downloaded, give a path on this disk")
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise VividError(f"{path}: holds none of {', '.join(FOLDER_FILES)}; name the file itself")


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}, content.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise VividError(f"{file}: is no whole safetensors file ({error}); fetch or write it again") from error


def _read_pickled(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise VividError(
            f"{file}: cannot be read as plain tensors ({type(error).__name__}); it is broken or pickles code: "
            "fetch it again, or save its state dict alone as .safetensors"
        ) from error
    if isinstance(content, Mapping):
        wrapped = [name for name in ("state_dict", "model") if isinstance(content.get(name), Mapping)]
        content = content[wrapped[0]] if wrapped else content
    if not isinstance(content, Mapping) or not content:
        raise VividError(f"{file}: holds a {type(content).__name__}, not named tensors")
    foreign = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        raise VividError(f"{file}: {foreign[0]!r} is no tensor; save the state dict alone")
    return dict(content)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VividError(f"{file}: is no JSON ({error})") from error
    return config if isinstance(config, dict) else {}


CLS = "cls_token"
POSITIONS = "patch_embedding.position_embeddings"
PATCHES = "patch_embedding.patch_embeddings"


@dataclass(frozen=True)
class Naming:
    """One library's names for the parameters of :class:`vivid_monai.networks.vit.ViT`.

    Attributes:
        library: who writes such checkpoints.
        marker: pattern that the names of no other naming match.
        prefix: pattern of what may stand before every name.
        tokens: our parameter → theirs.
        layers: our layer → theirs, each with a weight and a bias; several of theirs are stacked to one of ours.
        block: their name of block {i}.
        block_layers: as `layers`, within a block.
        ignorable: patterns of names that are no part of the encoder (heads, poolers).
        positions_with_cls: whether the first position embedding belongs to the CLS token.
    """

    library: str
    marker: str
    tokens: Mapping[str, str]
    layers: Mapping[str, tuple[str, ...]]
    block: str
    block_layers: Mapping[str, tuple[str, ...]]
    prefix: str = ""
    ignorable: tuple[str, ...] = field(default=())
    positions_with_cls: bool = True

    def sources(self, depth: int) -> dict[str, tuple[str, ...]]:
        """Each parameter of our ViT of `depth` blocks → the names of the tensors it is stacked from."""
        layers = dict(self.layers)
        for i in range(depth):
            for ours, theirs in self.block_layers.items():
                layers[f"blocks.{i}.{ours}"] = tuple(f"{self.block.format(i=i)}.{name}" for name in theirs)
        sources: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in self.tokens.items()}
        for kind in ("weight", "bias"):
            sources |= {f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in names) for ours, names in layers.items()}
        return sources

    def strip(self, name: str) -> str:
        """The name without the prefix."""
        return re.sub(f"^(?:{self.prefix})", "", name) if self.prefix else name

    def may_ignore(self, name: str) -> bool:
        """Whether a tensor of this (stripped) name is no part of the encoder."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignorable)


_OURS = {name: (name,) for name in ("norm1", "attn.qkv", "attn.out_proj", "norm2", "mlp.linear1", "mlp.linear2")}
VIVID = Naming(
    library="vivid_monai",
    marker=r"^patch_embedding\.",
    tokens={CLS: CLS, POSITIONS: POSITIONS},
    layers={PATCHES: (PATCHES,), "norm": ("norm",)},
    block="blocks.{i}",
    block_layers=_OURS,
    positions_with_cls=False,
)

TIMM = Naming(
    library="timm",
    marker=r"^patch_embed\.",
    tokens={CLS: "cls_token", POSITIONS: "pos_embed"},
    layers={PATCHES: ("patch_embed.proj",), "norm": ("norm",)},
    block="blocks.{i}",
    block_layers={
        "norm1": ("norm1",),
        "attn.qkv": ("attn.qkv",),
        "attn.out_proj": ("attn.proj",),
        "norm2": ("norm2",),
        "mlp.linear1": ("mlp.fc1",),
        "mlp.linear2": ("mlp.fc2",),
    },
    ignorable=(r"head\..*", r"fc_norm\..*", r"pre_logits\..*"),
)

_TRANSFORMERS_TOKENS = {CLS: "embeddings.cls_token", POSITIONS: "embeddings.position_embeddings"}
_TRANSFORMERS_LAYERS = {PATCHES: ("embeddings.patch_embeddings.projection",), "norm": ("layernorm",)}
_TRANSFORMERS_IGNORABLE = (r"pooler\..*", r"classifier\..*", r"embeddings\.mask_token")

# What save_pretrained writes, up to and including transformers 5.
TRANSFORMERS = Naming(
    library="transformers",
    marker=r"^(vit\.)?encoder\.layer\.\d+\.",
    prefix=r"vit\.",
    tokens=_TRANSFORMERS_TOKENS,
    layers=_TRANSFORMERS_LAYERS,
    block="encoder.layer.{i}",
    block_layers={
        "norm1": ("layernorm_before",),
        "attn.qkv": tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
        "attn.out_proj": ("attention.output.dense",),
        "norm2": ("layernorm_after",),
        "mlp.linear1": ("intermediate.dense",),
        "mlp.linear2": ("output.dense",),
    },
    ignorable=_TRANSFORMERS_IGNORABLE,
)

# The names of the modules themselves in transformers 5, as in a plain state_dict().
TRANSFORMERS_5 = Naming(
    library="transformers",
    marker=r"^(vit\.)?layers\.\d+\.",
    prefix=r"vit\.",
    tokens=_TRANSFORMERS_TOKENS,
    layers=_TRANSFORMERS_LAYERS,
    block="layers.{i}",
    block_layers={
        "norm1": ("layernorm_before",),
        "attn.qkv": tuple(f"attention.{name}_proj" for name in "qkv"),
        "attn.out_proj": ("attention.o_proj",),
        "norm2": ("layernorm_after",),
        "mlp.linear1": ("mlp.fc1",),
        "mlp.linear2": ("mlp.fc2",),
    },
    ignorable=_TRANSFORMERS_IGNORABLE,
)

# DINOv2's architecture, as save_pretrained writes it: for writing only, as its layer scales have no counterpart here.
DINOV2 = replace(
    TRANSFORMERS,
    prefix=r"dinov2\.",
    block_layers={
        "norm1": ("norm1",),
        "attn.qkv": TRANSFORMERS.block_layers["attn.qkv"],
        "attn.out_proj": TRANSFORMERS.block_layers["attn.out_proj"],
        "norm2": ("norm2",),
        "mlp.linear1": ("mlp.fc1",),
        "mlp.linear2": ("mlp.fc2",),
    },
)

NAMINGS = (VIVID, TIMM, TRANSFORMERS, TRANSFORMERS_5)


def recognise(names: Iterable[str]) -> Naming | None:
    """The naming that these tensor names follow, None where it is none of those known."""
    names = list(names)
    return next((naming for naming in NAMINGS if any(re.search(naming.marker, name) for name in names)), None)
