"""Encoders of this package, and :func:`load_encoder`: any encoder from a string."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import Encoder
from vivid_monai.evaluation.encoders.from_open_clip import load_open_clip
from vivid_monai.evaluation.encoders.from_timm import load_timm
from vivid_monai.evaluation.encoders.from_torchxrayvision import load_torchxrayvision
from vivid_monai.evaluation.encoders.from_transformers import load_transformers
from vivid_monai.images.preprocess import BasePreprocess, preprocess_from_dict
from vivid_monai.networks.classifier import BACKBONES
from vivid_monai.networks.modules import load_module
from vivid_monai.networks.pooling import choose_pool, pool_tokens


class VividEncoder(Encoder):
    """A backbone of this package with pooled tokens as features.

    Args:
        backbone: one of :data:`~vivid_monai.networks.classifier.BACKBONES`; it is frozen and set to evaluation mode.
        preprocess: what its images go through.
        pool: "cls", "mean" or "cls+mean".
        source: what results call it by.

    Raises:
        VividError: a pooling that it lacks, or a preprocessing that makes other images than the network was built for.
    """

    kind = "vivid"

    def __init__(self, backbone: Any, preprocess: BasePreprocess, *, pool: str | None = None, source: str = "") -> None:
        pool = choose_pool(pool, cls=backbone.prefix > 0, patches=True, pooled=False)
        self.architecture = backbone.architecture
        settings = {name: value for name, value in backbone.config.items() if name != "drop_path"}
        super().__init__(backbone, preprocess, pool=pool, source=source, settings=settings)

    @property
    def vit(self) -> Any:
        """The backbone."""
        return self.network

    def forward(self, images: Tensor) -> Tensor:
        return pool_tokens(self.network(images).float(), self.pool, prefix=self.network.prefix)


def load_vivid(path: str, *, pool: str | None = None) -> VividEncoder:
    """The encoder of a file of :func:`~vivid_monai.networks.modules.save_module`.

    Raises:
        VividError: the file cannot be read, or its preprocessing is not complete.
    """
    saved = load_module(path, BACKBONES)
    return VividEncoder(saved.module, _preprocess(path, saved.preprocess), pool=pool, source=path)


def untrained(path: str, *, pool: str | None = None, seed: int = 0) -> VividEncoder:
    """The network of such a file as it was before any training: same architecture and preprocessing, fresh weights.

    The weights depend on `seed` alone.

    Raises:
        VividError: as :func:`load_vivid`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        saved = load_module(path, BACKBONES, pretrained=False)
    return VividEncoder(
        saved.module, _preprocess(path, saved.preprocess), pool=pool, source=f"untrained:{path} (seed {seed})"
    )


def _preprocess(path: str, stored: object) -> BasePreprocess:
    if not isinstance(stored, dict):
        raise VividError(f"{path}: its preprocessing is a {type(stored).__name__}, not a set of named values")
    try:
        return preprocess_from_dict(stored)
    except VividError as error:
        raise VividError(f"{path}: {error}") from error


LIBRARIES: dict[str, Callable[..., Encoder]] = {
    "transformers": load_transformers,
    "timm": load_timm,
    "open_clip": load_open_clip,
    "torchxrayvision": load_torchxrayvision,
}


def load_encoder(spec: str, *, pool: str | None = None, seed: int = 0) -> Encoder:
    """The encoder that a string names, frozen and in evaluation mode. The global random state is left as it was.

    Args:
        spec: a ``.safetensors`` file of ours; ``untrained:`` and such a file, for fresh weights; a folder of
            transformers; or ``transformers:``, ``timm:``, ``open_clip:`` or ``torchxrayvision:`` and a folder or name.
        pool: "cls", "mean" (of the patches), "cls+mean" or "pooled" (the network's own pooled output); None is the
            network's default ("cls", without a CLS token "pooled"), and :attr:`Encoder.pool` says which.
        seed: of the fresh weights.

    Raises:
        VividError: the spec names nothing that can be had; the library is not installed; weights or preprocessing are
            not complete; the network lacks the pool.
    """
    with torch.random.fork_rng(devices=[]):  # libraries draw random weights before they load the real ones
        return _load(spec, pool, seed)


def _load(spec: str, pool: str | None, seed: int) -> Encoder:
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
