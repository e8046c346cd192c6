"""Encoders of this package, and :func:`load_encoder`: any encoder from a string."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import Encoder
from vivid_monai.evaluation.encoders.from_open_clip import load_open_clip
from vivid_monai.evaluation.encoders.from_timm import load_timm
from vivid_monai.evaluation.encoders.from_torchxrayvision import load_torchxrayvision
from vivid_monai.evaluation.encoders.from_transformers import load_transformers
from vivid_monai.images.preprocess import BasePreprocess, Preprocess, preprocess_from_dict
from vivid_monai.networks.classifier import BACKBONES
from vivid_monai.networks.modules import load_module
from vivid_monai.networks.pooling import choose_pool
from vivid_monai.networks.spd import SPD


class VividEncoder(Encoder):
    """One of :data:`~vivid_monai.networks.classifier.BACKBONES`, its tokens pooled or read through SPD."""

    kind = "vivid"

    def __init__(
        self,
        backbone: Any,
        preprocess: BasePreprocess,
        *,
        spd: SPD | None = None,
        pool: str | None = None,
        source: str = "",
    ) -> None:
        super().__init__(
            backbone,
            preprocess,
            pool=choose_pool(pool, cls=backbone.prefix > 0, patches=True, pooled=False, spd=spd is not None),
            prefix=backbone.prefix,
            spd=spd,
            source=source,
            settings={name: value for name, value in backbone.config.items() if name != "drop_path"},
            architecture=backbone.architecture,
        )


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


def load_thumbnails(size: str, *, pool: str | None = None) -> Thumbnails:
    """The encoder of ``thumbnails:SIZE``, of SIZE × SIZE pixels; ``pool`` is not asked, as there are no tokens."""
    if not size.isdecimal() or not 1 <= int(size) <= 256:
        raise VividError(f"'thumbnails:{size}': give the pixels of a side, 1 to 256, such as thumbnails:24")
    return Thumbnails(int(size))


LIBRARIES: dict[str, Callable[..., Encoder]] = {
    "transformers": load_transformers,
    "timm": load_timm,
    "open_clip": load_open_clip,
    "torchxrayvision": load_torchxrayvision,
    "thumbnails": load_thumbnails,
}


def load_encoder(spec: str, *, pool: str | None = None, seed: int = 0) -> Encoder:
    """The encoder that a string names, frozen and in evaluation mode. The global random state is left as it was.

    Args:
        spec: a ``.safetensors`` file of ours, or the folder of a run; ``untrained:`` and such a file or folder, for
            fresh weights; a folder of transformers; ``transformers:``, ``timm:``, ``open_clip:`` or
            ``torchxrayvision:`` and a folder or name; or ``thumbnails:`` and a number of pixels.
        pool: "spd" (our read-out, where the file has one), "cls", "mean" (of the patches), "cls+mean" or "pooled" (the
            network's own pooled output); None is what the file says, else the network's default ("cls", without a CLS
            token "pooled"), and :attr:`Encoder.pool` says which.
        seed: of the fresh weights.

    Raises:
        VividError: the spec names nothing that can be had; the library is not installed; weights or preprocessing are
            not complete; the network lacks the pool.
    """
    kind, colon, name = spec.partition(":")
    with torch.random.fork_rng(devices=[]):  # libraries draw random weights before they load the real ones
        if colon and kind in LIBRARIES:
            if not name:
                raise VividError(f"{spec!r} names no model: write {kind}:FOLDER-OR-NAME")
            return LIBRARIES[kind](name, pool=pool)
        folder = Path(spec).expanduser()
        if (folder / "config.json").is_file() and not (folder / "pretrained_vit.safetensors").is_file():
            if (folder / "initial_vit.safetensors").is_file():
                raise VividError(f"{spec}: this run has not ended, so it has no pretrained_vit.safetensors; resume it")
            return load_transformers(spec, pool=pool)
        path = spec.removeprefix("untrained:")
        if (own := Path(path).expanduser() / "pretrained_vit.safetensors").is_file():  # a run's folder, or models/
            path, spec = str(own), spec.removesuffix(path) + str(own)
        if not path.endswith(".safetensors"):
            raise VividError(
                f"{spec!r} is no encoder: give a .safetensors file of this package (or untrained: and such a file), a "
                f"folder with a config.json, or one of {', '.join(f'{library}:NAME' for library in LIBRARIES)}"
            )
        torch.manual_seed(seed)
        saved = load_module(path, BACKBONES, pretrained=path == spec)
    if not isinstance(saved.preprocess, dict):
        raise VividError(f"{path}: its preprocessing is a {type(saved.preprocess).__name__}, not a set of named values")
    try:
        preprocess = preprocess_from_dict(saved.preprocess)
    except VividError as error:
        raise VividError(f"{path}: {error}") from error
    source = path if path == spec else f"{spec} (seed {seed})"
    return VividEncoder(saved.module, preprocess, spd=saved.spd, pool=pool or saved.pool, source=source)
