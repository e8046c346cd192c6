"""One way to any encoder: a string."""

from collections.abc import Callable
from pathlib import Path

import torch

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import Encoder
from vivid_monai.evaluation.encoders.from_open_clip import load_open_clip
from vivid_monai.evaluation.encoders.from_timm import load_timm
from vivid_monai.evaluation.encoders.from_torchxrayvision import load_torchxrayvision
from vivid_monai.evaluation.encoders.from_transformers import load_transformers
from vivid_monai.evaluation.encoders.vivid import load_vivid, untrained

LIBRARIES: dict[str, Callable[..., Encoder]] = {
    "transformers": load_transformers,
    "timm": load_timm,
    "open_clip": load_open_clip,
    "torchxrayvision": load_torchxrayvision,
}


def load_encoder(spec: str, *, pool: str = "cls", seed: int = 0) -> Encoder:
    """The encoder that a string names, frozen and in evaluation mode. The global random state is left as it was.

    Args:
        spec: a ``.safetensors`` file of ours; ``untrained:`` and such a file, for fresh weights; a folder of
            transformers; or ``transformers:``, ``timm:``, ``open_clip:`` or ``torchxrayvision:`` and a folder or name.
        pool: "cls", "mean" (of the patches), "cls+mean" or "pooled"; a network that has no such tokens gives its own
            pooled output, and :attr:`Encoder.pool` says so.
        seed: of the fresh weights.

    Raises:
        VividError: the spec names nothing that can be had; the library is not installed; weights or preprocessing are
            not complete.
    """
    with torch.random.fork_rng(devices=[]):  # libraries draw random weights before they load the real ones
        return _load(spec, pool, seed)


def _load(spec: str, pool: str, seed: int) -> Encoder:
    kind, colon, name = spec.partition(":")
    if colon and kind == "untrained":
        return untrained(_file(name, spec), pool=pool, seed=seed)
    if colon and kind in LIBRARIES:
        if not name:
            raise VividError(f"{spec!r} names no model: write {kind}:FOLDER-OR-NAME")
        return LIBRARIES[kind](name, pool=pool)
    if (Path(spec).expanduser() / "config.json").is_file():
        return load_transformers(spec, pool=pool)
    return load_vivid(_file(spec, spec), pool=pool)


def _file(path: str, spec: str) -> str:
    if path.endswith(".safetensors"):
        return path
    raise VividError(
        f"{spec!r} is no encoder: give a .safetensors file of this package (or untrained: and such a file), a folder "
        f"with a config.json, or one of {', '.join(f'{library}:NAME' for library in LIBRARIES)}"
    )
