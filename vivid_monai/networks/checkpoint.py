"""Weights on disk, of any library: tensors by name, read without running code."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vivid_monai.checks import refuse_pointers
from vivid_monai.errors import VividError, first_line

FOLDER_FILES = ("pretrained_vit.safetensors", "model.safetensors", "pytorch_model.bin")
PICKLED = (".bin", ".pth", ".pt")


@dataclass(frozen=True)
class CheckpointFile:
    """Tensors by name, the strings stored with them, and the `config.json` beside them ({} where there is none)."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any]


def read_checkpoint(path: str | PathLike, *, tensors: bool = True) -> CheckpointFile:
    """Read a `.safetensors`, `.bin`, `.pth` or `.pt` file, or the folder that holds one, onto the CPU.

    Pickled files are read by PyTorch's restricted loader, which runs no code; a state dict wrapped once as
    `{"state_dict": …}` or `{"model": …}` is unwrapped.

    Args:
        path: the file or folder.
        tensors: False: only the metadata of a `.safetensors` file are read.

    Raises:
        VividError: there is no such file, it is of another kind, broken, or holds anything but tensors.
    """
    file = Path(path)
    if file.is_dir():
        inside = [file / name for name in FOLDER_FILES if (file / name).is_file()]
        if not inside:
            raise VividError(f"{file}: holds none of {', '.join(FOLDER_FILES)}; name the file itself")
        file = inside[0]
    if not file.is_file():
        raise VividError(f"{file}: no such file or folder; weights are never downloaded, give a path on this disk")
    refuse_pointers([file])
    metadata: dict[str, str] = {}
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as content:
                values = {name: content.get_tensor(name) for name in (content.keys() if tensors else ())}
                metadata = content.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise VividError(
                f"{file}: is no whole safetensors file ({first_line(error)}); fetch or write it again"
            ) from error
    elif file.suffix in PICKLED:
        values = _read_pickled(file)
    else:
        raise VividError(f"{file}: weights are read from .safetensors, {', '.join(PICKLED)}; convert the file to one")
    return CheckpointFile(path=file, tensors=values, metadata=metadata, config=read_json(file.parent, "config.json"))


def load_pickled(file: Path, *, way_out: str, content: bytes | None = None) -> Any:
    """Tensors and plain values in a file of ``torch.save``, onto the CPU; no code in it is run.

    Args:
        way_out: for the message.
        content: what the file held when it was checked.

    Raises:
        VividError: it is broken, or holds something else.
    """
    try:
        return torch.load(file if content is None else io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises all kinds, and advises to load the file without care
        what = f"({type(error).__name__}); it is broken or pickles code"
        raise VividError(f"{file}: cannot be read as plain tensors {what}: {way_out}") from error


def _read_pickled(file: Path) -> dict[str, Tensor]:
    content = load_pickled(file, way_out="fetch it again, or save its state dict alone as .safetensors")
    if isinstance(content, Mapping):
        wrapped = [name for name in ("state_dict", "model") if isinstance(content.get(name), Mapping)]
        content = content[wrapped[0]] if wrapped else content
    if not isinstance(content, Mapping) or not content:
        raise VividError(f"{file}: holds a {type(content).__name__}, not named tensors")
    if foreign := [name for name, value in content.items() if not isinstance(value, Tensor)]:
        raise VividError(f"{file}: {foreign[0]!r} is no tensor; save the state dict alone")
    return dict(content)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder, {} where there is none; VividError where it is broken."""
    file = folder / name
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VividError(f"{file}: is no JSON ({error})") from error
    return value if isinstance(value, dict) else {}
