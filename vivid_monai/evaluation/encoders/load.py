"""Encoders of this package, and :func:`load_encoder`: any encoder from a string."""

from collections.abc import Callable
from pathlib import Path

import torch

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import Encoder, VividEncoder
from vivid_monai.evaluation.encoders.from_monai import load_monai
from vivid_monai.evaluation.encoders.from_open_clip import load_open_clip
from vivid_monai.evaluation.encoders.from_timm import load_timm
from vivid_monai.evaluation.encoders.from_torchxrayvision import load_torchxrayvision
from vivid_monai.evaluation.encoders.from_transformers import load_transformers
from vivid_monai.images.preprocess import Preprocess, preprocess_from_dict
from vivid_monai.networks.classifier import BACKBONES
from vivid_monai.networks.modules import load_module


class Thumbnails(Encoder):
    """The pixels of a small grey copy of the whole image as features: what any encoder has to be better than."""

    kind, architecture = "thumbnails", "none"

    def __init__(self, size: int) -> None:
        super().__init__(
            torch.nn.Flatten(),
            Preprocess(size=size, channels=1, mean=0.5, std=0.25),
            pool="pooled",
            source=f"thumbnails:{size}",
            settings={},
        )


def load_thumbnails(size: str, *, pool: str | None = None, pretrained: bool = True) -> Thumbnails:
    """The encoder of ``thumbnails:SIZE``, of SIZE × SIZE pixels; ``pool`` is not asked, as there are no tokens."""
    if not pretrained:
        raise VividError(f"'untrained:thumbnails:{size}': has no weights; leave out untrained:")
    if not size.isdecimal() or not 1 <= int(size) <= 256:
        raise VividError(f"'thumbnails:{size}': give the pixels of a side, 1 to 256, such as thumbnails:24")
    return Thumbnails(int(size))


LIBRARIES: dict[str, Callable[..., Encoder]] = {
    "transformers": load_transformers,
    "timm": load_timm,
    "open_clip": load_open_clip,
    "torchxrayvision": load_torchxrayvision,
    "monai": load_monai,
    "thumbnails": load_thumbnails,
}


def load_encoder(spec: str, *, pool: str | None = None, seed: int = 0) -> Encoder:
    """The encoder that a string names, frozen and in evaluation mode. The global random state is left as it was.

    Args:
        spec: a ``.safetensors`` file of ours, or the folder of a run; a folder of transformers; ``transformers:``,
            ``timm:``, ``open_clip:``, ``torchxrayvision:`` or ``monai:`` and a folder or name; ``untrained:`` and any
            of these, for the same network with fresh weights; or ``thumbnails:`` and a number of pixels.
        pool: "spd" (our read-out, where the file has one), "cls", "mean" (of the patches), "cls+mean" or "pooled" (the
            network's own pooled output); None is what the file says, else the network's default ("cls", without a CLS
            token "pooled"), and :attr:`Encoder.pool` says which.
        seed: of the fresh weights.

    Raises:
        VividError: the spec names nothing that can be had; the library is not installed; weights or preprocessing are
            not complete; the network lacks the pool.
    """
    path = spec.removeprefix("untrained:")
    with torch.random.fork_rng(devices=[]):  # libraries draw random weights before they load the real ones
        torch.default_generator.manual_seed(seed)
        encoder = _load(path, pool=pool, pretrained=path == spec)
    if path != spec:
        encoder.source = f"{spec} (seed {seed})"
    return encoder


def _load(path: str, *, pool: str | None, pretrained: bool) -> Encoder:
    kind, colon, name = path.partition(":")
    if colon and kind in LIBRARIES:
        if not name:
            raise VividError(f"{path!r} names no model: write {kind}:FOLDER-OR-NAME")
        return LIBRARIES[kind](name, pool=pool, pretrained=pretrained)
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file() and not (folder / "pretrained_vit.safetensors").is_file():
        if (folder / "initial_vit.safetensors").is_file():
            raise VividError(f"{path}: this run has not ended, so it has no pretrained_vit.safetensors; resume it")
        return load_transformers(path, pool=pool, pretrained=pretrained)
    if (own := folder / "pretrained_vit.safetensors").is_file():  # a run's folder, or models/
        path = str(own)
    if not path.endswith(".safetensors"):
        raise VividError(
            f"{path!r} is no encoder: give a .safetensors file of this package, a folder with a config.json, or one of "
            f"{', '.join(f'{library}:NAME' for library in LIBRARIES)}; with untrained: before it, fresh weights"
        )
    saved = load_module(path, BACKBONES, pretrained=pretrained)
    if not isinstance(saved.preprocess, dict):
        raise VividError(f"{path}: its preprocessing is a {type(saved.preprocess).__name__}, not a set of named values")
    try:
        preprocess = preprocess_from_dict(saved.preprocess)
    except VividError as error:
        raise VividError(f"{path}: {error}") from error
    return VividEncoder(saved.module, preprocess, spd=saved.spd, pool=pool or saved.pool, source=path)
