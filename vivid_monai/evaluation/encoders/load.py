"""One way to any encoder: a string."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import Encoder, choose_pool, pool_tokens
from vivid_monai.evaluation.encoders.from_open_clip import load_open_clip
from vivid_monai.evaluation.encoders.from_timm import load_timm
from vivid_monai.evaluation.encoders.from_torchxrayvision import load_torchxrayvision
from vivid_monai.evaluation.encoders.from_transformers import load_transformers
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.vit import ViT
from vivid_monai.networks.weights import load_vit


class VividEncoder(Encoder):
    """A ViT of this package.

    Args:
        vit: the network; it is frozen and set to evaluation mode.
        preprocess: what its images go through.
        pool: "cls", "mean" or "cls+mean".
        source: what results call it by.

    Raises:
        VividError: another pooling, or a preprocessing that makes other images than the network was built for.
    """

    kind = "vivid"

    def __init__(self, vit: ViT, preprocess: Preprocess, *, pool: str = "cls", source: str = "") -> None:
        if choose_pool(pool, cls=True, patches=True) == "pooled":
            raise VividError("pool='pooled': a ViT of ours has no pooled output; use cls, mean or cls+mean")
        self.architecture = f"vit-{vit.config['preset']}/{vit.config['patch_size']}"
        settings = {name: value for name, value in vit.config.items() if name != "drop_path"}
        super().__init__(vit, preprocess, pool=pool, source=source, settings=settings)

    @property
    def vit(self) -> ViT:
        """The network."""
        return self.network

    def forward(self, images: Tensor) -> Tensor:
        return pool_tokens(self.network(images), self.pool, prefix=1)


def load_vivid(path: str, *, pool: str = "cls") -> VividEncoder:
    """The encoder of a file of :func:`~vivid_monai.networks.weights.save_vit`.

    Raises:
        VividError: the file cannot be read, or its preprocessing is not complete.
    """
    vit, metadata = load_vit(path)
    return VividEncoder(vit, _preprocess(path, metadata["preprocess"]), pool=pool, source=path)


def untrained(path: str, *, pool: str = "cls", seed: int = 0) -> VividEncoder:
    """The network of such a file as it was before any training: same architecture and preprocessing, fresh weights.

    The weights depend on `seed` alone.

    Raises:
        VividError: as :func:`load_vivid`.
    """
    trained, metadata = load_vit(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = ViT(**trained.config)
    preprocess = _preprocess(path, metadata["preprocess"])
    return VividEncoder(vit, preprocess, pool=pool, source=f"untrained:{path} (seed {seed})")


def _preprocess(path: str, stored: object) -> Preprocess:
    if not isinstance(stored, dict):
        raise VividError(f"{path}: its preprocessing is a {type(stored).__name__}, not a set of named values")
    try:
        return Preprocess.from_dict(stored)
    except VividError as error:
        raise VividError(f"{path}: {error}") from error


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
