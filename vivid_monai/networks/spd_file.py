"""SPD from and to disk, with the settings that build it again: attention maps can then be drawn later."""

import json
from os import PathLike
from typing import Any

import torch
from safetensors.torch import save

from vivid_monai.errors import VividError
from vivid_monai.networks.checkpoint import CheckpointFile, read_checkpoint
from vivid_monai.networks.spd import SPD
from vivid_monai.storage.files import whole_file

FORMAT = "vivid-spd"
VERSION = 1


def save_spd(spd: SPD, path: str | PathLike) -> None:
    """Write an SPD with its settings as one safetensors file, whole or not at all.

    Raises:
        VividError: `spd` is none, `path` does not end in `.safetensors`, or the file cannot be written.
    """
    if not isinstance(spd, SPD):
        raise VividError(f"a {type(spd).__name__} cannot be saved as an SPD: give the module itself")
    if not str(path).endswith(".safetensors"):
        raise VividError(f"{path}: an SPD is saved as .safetensors")
    groups, heads, queries, _ = spd.queries.shape
    config = {"dim": spd.dim, "groups": groups, "queries": queries, "heads": heads, "dropout": spd.dropout.p}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in spd.state_dict().items()}
    metadata = {"format": FORMAT, "version": str(VERSION), "config": json.dumps(config)}
    with whole_file(path) as part:
        part.write_bytes(save(tensors, metadata=metadata))


def load_spd(path: str | PathLike) -> SPD:
    """Read a file of `save_spd`.

    Returns:
        The SPD, on the CPU and in training mode as any new module. The global random state is left alone.

    Raises:
        VividError: no such file, broken, not written by `save_spd`, or its tensors are not those of its settings.
    """
    file = read_checkpoint(path)
    config = _own_config(file)
    try:
        with torch.device("meta"):
            spd = SPD(**config)
    except (TypeError, VividError) as error:
        raise VividError(f"{file.path}: its settings are not those of an SPD: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in spd.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    if wrong := [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]:
        told = "; ".join(f"{name} is {found.get(name, 'missing')}, not {expected.get(name, 'known')}" for name in wrong)
        raise VividError(f"{file.path}: its tensors are not those of its settings: {told}; write it again")
    spd.load_state_dict(file.tensors, assign=True)
    return spd


def _own_config(file: CheckpointFile) -> dict[str, Any]:
    stored = file.metadata
    if stored.get("format") != FORMAT:
        raise VividError(f"{file.path}: was not written by save_spd")
    if stored.get("version") != str(VERSION):
        raise VividError(f"{file.path}: has version {stored.get('version')!r}, this package reads {VERSION}; update it")
    try:
        return dict(json.loads(stored["config"]))
    except (KeyError, ValueError, TypeError) as error:
        raise VividError(f"{file.path}: its metadata is broken ({error!r}); write it again") from error
