"""Modules as files: the tensors in safetensors, and as JSON the configuration that builds the module again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from vivid_monai.errors import VividError, cut, first_line
from vivid_monai.networks.checkpoint import CheckpointFile, read_checkpoint
from vivid_monai.networks.spd import SPD
from vivid_monai.storage.files import whole_file

KEY, VERSION = "vivid", 2
SPD_PREFIX = "spd."
"""What the names of SPD's tensors begin with in the file of an encoder."""
_TYPES: dict[str, Any] = {"kind": str, "config": dict, "fields": list | None, "spd": dict | None, "pool": str | None}


@dataclass(frozen=True)
class SavedModule:
    """What a file of `save_module` holds.

    Attributes:
        module: on the CPU and in training mode, as any new module.
        spd: what the tokens of an encoder are read through; None where there is none.
        pool: how its tokens become features, where that was stored.
        preprocess: what an image must go through before an encoder, as `Preprocess.to_dict()`; None for other modules.
        fields: the findings it was trained on, in order, where that was stored.
        extra: anything else that was stored.
    """

    module: Any
    spd: SPD | None
    pool: str | None
    preprocess: dict[str, Any] | None
    fields: tuple[str, ...] | None
    extra: dict[str, Any]


def save_module(
    module: nn.Module,
    path: str | PathLike,
    *,
    kind: str,
    config: Mapping[str, Any] | None = None,
    spd: SPD | None = None,
    pool: str | None = None,
    preprocess: Mapping[str, Any] | None = None,
    fields: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a module as one safetensors file. The same module gives the same bytes; a failed write leaves no part.

    Args:
        module: its whole state dict is written.
        path: ends in `.safetensors`; its folder is made where missing.
        kind: name under which `load_module` allows it: "vit", "resnet", "spd", "probe", …
        config: keyword arguments of its class; `module.config` where not given.
        spd, pool, preprocess, fields, extra: see `SavedModule`.

    Raises:
        VividError: another suffix, something is not JSON, or the file cannot be written.
    """
    if not str(path).endswith(".safetensors"):
        raise VividError(f"{path}: modules are saved as .safetensors; name the file so")
    stored = {
        "kind": kind,
        "version": VERSION,
        "config": dict(getattr(module, "config") if config is None else config),  # noqa: B009
        "preprocess": preprocess and dict(preprocess),
        "fields": fields and list(fields),
        "extra": dict(extra or {}),
        **({"spd": spd.config} if spd else {}),
        **({"pool": pool} if pool else {}),
    }
    try:
        metadata = {KEY: json.dumps(stored)}  # one entry: safetensors gives several no order
    except TypeError as error:
        raise VividError(f"{path}: config, preprocess, fields and extra must be JSON: {error}") from error
    state = _state({"": module, SPD_PREFIX: spd})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with whole_file(path) as part:
        part.write_bytes(save(tensors, metadata=metadata))


def load_module(
    path: str | PathLike | CheckpointFile, allowed: Mapping[str, type], *, pretrained: bool = True
) -> SavedModule:
    """Read a file of `save_module`, or one of this package's earlier files. No code in it is run.

    A module is built without memory first, and gets its tensors when they are seen to be those of its configuration.
    One with the attribute `keeps_more_than_its_state`, such as tables that it works out, is then built a second time.

    Args:
        path: the file, or a folder with one of `checkpoint.FOLDER_FILES`.
        allowed: kind → class: what may be built. Nothing else is.
        pretrained: False: the same module with weights drawn anew from the global random state; no tensor is read.
            Otherwise the global random state is left as it is.

    Returns:
        The module with its tensors as they were stored (half precision as float32), and what was stored with it.

    Raises:
        VividError: no such file, broken, not written by this package, of a kind that is not allowed, or its tensors
            are not those of its configuration.
    """
    file = path if isinstance(path, CheckpointFile) else read_checkpoint(path, tensors=pretrained)
    stored = stored_parts(file)
    if stored is None:
        raise VividError(f"{file.path}: was not written by save_module; give a file of this package")
    kind, fields = stored["kind"], stored["fields"]
    if kind not in allowed:
        raise VividError(f"{file.path}: holds a module of kind {kind!r}, not {' or '.join(allowed)}")
    try:
        with torch.device("meta" if pretrained else "cpu"):
            module = allowed[kind](**stored["config"])
            spd = SPD(**stored["spd"]) if stored["spd"] else None
    except Exception as error:  # whatever a value leads to that is not the right one, such as a size beyond all memory
        if isinstance(error.__cause__, ImportError):  # a library that it needs
            raise VividError(f"{file.path}: {error}") from error
        raise VividError(f"{file.path}: its configuration is not one of a {kind}: {first_line(error)}") from error
    if pretrained:
        parts = {"": module, SPD_PREFIX: spd}
        if wrong := misfits(file.tensors, _state(parts)):
            raise VividError(f"{file.path}: its tensors are not those of its configuration: {some(wrong, sep='; ')}")
        if getattr(module, "keeps_more_than_its_state", False):
            with torch.random.fork_rng(devices=[]):
                module = parts[""] = allowed[kind](**stored["config"])
        # A copy: the file's own memory is aligned to 8 bytes only, and goes when the file does.
        halves = (torch.float16, torch.bfloat16)
        own = {name: t.float() if t.dtype in halves else t.clone() for name, t in file.tensors.items()}
        for prefix, part in parts.items():
            if part is not None:
                part.load_state_dict({name: own[prefix + name] for name in part.state_dict()}, assign=True)
    return SavedModule(
        module=module,
        spd=spd,
        pool=stored["pool"],
        preprocess=stored["preprocess"],
        fields=None if fields is None else tuple(fields),
        extra=stored["extra"],
    )


def _state(parts: Mapping[str, nn.Module | None]) -> dict[str, Tensor]:
    """Tensors of modules by the prefix of their names."""
    return {prefix + name: one for prefix, part in parts.items() if part for name, one in part.state_dict().items()}


def fingerprint(module: nn.Module, said: Mapping[str, Any] | None = None) -> str:
    """SHA-256 (hex) of what a module is: `said` of it (JSON) and name, type, shape and bytes of every tensor.

    Args:
        module: anything with a state dict.
        said: what the tensors do not tell; `{"config": module.config}` where not given.
    """
    said = {"config": getattr(module, "config")} if said is None else dict(said)  # noqa: B009
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored_parts(file: CheckpointFile) -> dict[str, Any] | None:
    """What `SavedModule` says of a file of this package, SPD by its config; None where another wrote the file.

    Raises:
        VividError: a newer version, or metadata that are broken.
    """
    metadata, kind = file.metadata, file.metadata.get("format", "").removeprefix("vivid-")
    stored: dict[str, Any] = {"spd": None, "pool": None, "preprocess": None, "fields": None, "extra": {}}
    try:
        if KEY in metadata:
            stored |= json.loads(metadata[KEY])
        elif kind in ("vit", "spd", "probe"):  # version 1: an entry for each part
            parts = {name: json.loads(metadata[name]) for name in metadata.keys() - {"format"}}
            known = {name: parts.pop(name) for name in (*stored, "config", "version") if name in parts}
            stored |= {"kind": kind, **known}
            if kind == "probe":
                outputs, inputs = file.tensors["weight"].shape
                stored |= {"config": {"in_features": inputs, "out_features": outputs}, "extra": parts}
        elif "vivid-assessment" in metadata:  # version 1 of the out-of-distribution statistics
            config = {"dim": len(file.tensors["location"]), **json.loads(metadata["vivid-assessment"])}
            stored |= {"kind": "assessment", "version": config.pop("version"), "config": config}
        else:
            return None
        if stored["version"] not in (1, VERSION):
            raise VividError(f"{file.path}: has version {stored['version']}, this package reads {VERSION}; update it")
        right = [isinstance(stored[name], types) for name, types in _TYPES.items()]
    except VividError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise VividError(f"{file.path}: its metadata are broken ({cut(repr(error), 120)}); write it again") from error
    if not all(right):
        raise VividError(f"{file.path}: its metadata are broken (kind, config or fields); write it again")
    return stored


def misfits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors from being those wanted: missing or unknown names, other shapes, integers for floats."""
    wrong = []
    for name in sorted(found.keys() | wanted.keys()):
        one, other = found.get(name), wanted.get(name)
        if one is None or other is None:
            wrong.append(f"{name} is {'missing' if one is None else 'unknown'}")
        elif one.shape != other.shape:
            wrong.append(f"{name} has shape {tuple(one.shape)}, not {tuple(other.shape)}")
        elif one.is_floating_point() != other.is_floating_point():
            wrong.append(f"{name} is of {one.dtype}, not {other.dtype}")
    return wrong


def some(names: Sequence[str], most: int = 4, *, sep: str = ", ") -> str:
    """The first few of many names."""
    return sep.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
