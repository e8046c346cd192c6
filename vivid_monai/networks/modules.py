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

from vivid_monai.errors import VividError
from vivid_monai.networks.checkpoint import CheckpointFile, read_checkpoint
from vivid_monai.storage.files import whole_file

KEY, VERSION = "vivid", 2
_PARTS = ("config", "preprocess", "fields", "extra")


@dataclass(frozen=True)
class SavedModule:
    """What a file of `save_module` holds.

    Attributes:
        module: the module, on the CPU and in training mode as any new module.
        kind: what it is: "vit", "resnet", "spd", "probe", …
        config: the keyword arguments that built it.
        preprocess: what an image must go through before an encoder, as `Preprocess.to_dict()`; None for other modules.
        fields: the findings it was trained on, in order, where that was stored.
        extra: anything else that was stored.
    """

    module: Any
    kind: str
    config: dict[str, Any]
    preprocess: dict[str, Any] | None
    fields: tuple[str, ...] | None
    extra: dict[str, Any]


def save_module(
    module: nn.Module,
    path: str | PathLike,
    *,
    kind: str,
    config: Mapping[str, Any] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    fields: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a module as one safetensors file. The same module gives the same bytes; a failed write leaves no part.

    Args:
        module: its whole state dict is written.
        path: ends in `.safetensors`; its folder is made where missing.
        kind: name under which `load_module` allows it.
        config: keyword arguments of its class; `module.config` where not given.
        preprocess, fields, extra: see `SavedModule`.

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
    }
    try:
        metadata = {KEY: json.dumps(stored)}  # one entry: safetensors gives several no order
    except TypeError as error:
        raise VividError(f"{path}: config, preprocess, fields and extra must be JSON: {error}") from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    with whole_file(path) as part:
        part.write_bytes(save(tensors, metadata=metadata))


def load_module(path: str | PathLike, allowed: Mapping[str, type], *, pretrained: bool = True) -> SavedModule:
    """Read a file of `save_module`, or one of this package's earlier files. No code in it is run.

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
    file = read_checkpoint(path, tensors=pretrained)
    stored = stored_parts(file)
    if stored is None:
        raise VividError(f"{file.path}: was not written by save_module; give a file of this package")
    return build(file, stored, allowed, pretrained=pretrained)


def build(
    file: CheckpointFile, stored: Mapping[str, Any], allowed: Mapping[str, type], *, pretrained: bool = True
) -> SavedModule:
    """The module of a file that has been read and of its `stored_parts`; see `load_module`."""
    if stored["kind"] not in allowed:
        raise VividError(f"{file.path}: holds a module of kind {stored['kind']!r}, not {' or '.join(allowed)}")
    kind, parts = stored["kind"], {name: stored[name] for name in _PARTS}
    try:
        with torch.device("meta" if pretrained else "cpu"):
            module = allowed[kind](**parts["config"])
    except (TypeError, ValueError, VividError) as error:
        raise VividError(f"{file.path}: its configuration is not one of a {kind}: {error}") from error
    if pretrained:
        wanted, found = _shapes(module.state_dict()), _shapes(file.tensors)
        if wrong := [name for name in sorted(wanted | found) if wanted.get(name) != found.get(name)]:
            told = [f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'known')}" for name in wrong]
            raise VividError(f"{file.path}: its tensors are not those of its configuration: {some(told, sep='; ')}")
        # A copy: the file's own memory is aligned to 8 bytes only, and goes when the file does.
        module.load_state_dict({name: _own(tensor) for name, tensor in file.tensors.items()}, assign=True)
    parts["fields"] = None if parts["fields"] is None else tuple(parts["fields"])
    return SavedModule(module=module, kind=kind, **parts)


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
    """Kind, config, preprocess, fields and extra of a file of this package; None where another wrote it.

    Raises:
        VividError: a newer version, or metadata that are broken.
    """
    metadata = file.metadata
    kind = metadata.get("format", "").removeprefix("vivid-")
    try:
        if KEY in metadata:
            stored = json.loads(metadata[KEY])
        elif "vivid-assessment" in metadata:  # version 1 of the out-of-distribution statistics
            config = {"dim": len(file.tensors["location"]), **json.loads(metadata["vivid-assessment"])}
            stored = {"kind": "assessment", "version": config.pop("version"), "config": config}
        elif kind in ("vit", "spd", "probe"):  # version 1 of the others: an entry for each part
            version, names = metadata["version"], metadata.keys() - {"format", "version"}
            values = {name: json.loads(metadata[name]) for name in names}
            stored = {"kind": kind, "version": int(version), **{n: values.pop(n) for n in _PARTS if n in values}}
            if kind == "probe":
                stored |= {"config": _linear(file), "extra": values}
        else:
            return None
        if stored["version"] not in (1, VERSION):
            raise VividError(f"{file.path}: has version {stored['version']}, this package reads {VERSION}; update it")
        right = (
            isinstance(stored["kind"], str)
            and isinstance(stored["config"], dict)
            and isinstance(stored.get("fields"), list | None)
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise VividError(f"{file.path}: its metadata are broken ({error!r}); write it again") from error
    if not right:
        raise VividError(f"{file.path}: its metadata are broken (kind, config or fields); write it again")
    return {"preprocess": None, "fields": None, "extra": {}} | stored


def some(names: Sequence[str], most: int = 4, *, sep: str = ", ") -> str:
    """The first few of many names."""
    return sep.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _linear(file: CheckpointFile) -> dict[str, int]:
    shape = file.tensors["weight"].shape
    return {"in_features": shape[1], "out_features": shape[0]}


def _own(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.clone()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
