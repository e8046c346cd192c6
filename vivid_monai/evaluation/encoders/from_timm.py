"""timm's models as encoders: by name, from the hub, or from a folder of ``timm.models.save_for_hf``."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vivid_monai.errors import VividError, first_line
from vivid_monai.evaluation.encoders.base import Encoder, library, square_preprocess, structure
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.pooling import choose_pool, pool_tokens

NEEDED = ("input_size", "mean", "std", "interpolation", "crop_pct")
RESIZE = {"center": "crop", "squash": "stretch"}


class TimmEncoder(Encoder):
    """A timm network without its classifier. Tokens are those of ``forward_features``.

    "pooled" is what timm pools before the classifier.
    """

    kind = "timm"

    def __init__(self, model: Any, preprocess: Preprocess, *, pool: str, source: str) -> None:
        self.architecture = str(model.pretrained_cfg["architecture"])
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        super().__init__(model, preprocess, pool=pool, source=source, settings=structure(model))

    def forward(self, images: Tensor) -> Tensor:
        if self.pool == "pooled":
            return self.network(images).float()
        return pool_tokens(self.network.forward_features(images).float(), self.pool, prefix=self.prefix)


def load_timm(name: str, *, pool: str | None = None) -> TimmEncoder:
    """The encoder of a folder with config.json and weights, or of a name that timm knows (``hf-hub:…`` too).

    Raises:
        VividError: timm is not installed; there is no such model; its weights are not those of the architecture; its
            preprocessing is not complete or cannot be expressed.
    """
    timm = library("timm", "timm")
    folder = Path(name).expanduser()
    if folder.exists():
        _check_folder(folder)
    try:
        # With the classifier, which is loaded strictly; asked for no classes, timm would let anything be missing.
        model = timm.create_model(f"local-dir:{folder}" if folder.exists() else name, pretrained=True)
    except Exception as error:  # timm, safetensors and the hub each raise their own kinds
        raise VividError(f"timm:{name}: cannot be loaded: {first_line(error)}") from error
    if model.num_classes != model.pretrained_cfg.get("num_classes"):  # then timm would not have been strict
        raise VividError(
            f"timm:{name}: num_classes is {model.num_classes} in the arguments of the model and "
            f"{model.pretrained_cfg.get('num_classes')} in pretrained_cfg; its weights cannot be checked"
        )
    preprocess = read_timm_config(timm.data.resolve_model_data_config(model), f"timm:{name}")
    model.reset_classifier(0)
    return TimmEncoder(model, preprocess, pool=timm_pool(model, pool), source=f"timm:{name}")


def timm_pool(model: Any, asked: str | None) -> str:
    """The pooling of a timm network for the one asked for."""
    cls = getattr(model, "cls_token", None) is not None
    return choose_pool(asked, cls=cls, patches=hasattr(model, "num_prefix_tokens"))


def read_timm_config(config: Mapping[str, Any], where: str) -> Preprocess:
    """timm's evaluation transform as our preprocessing.

    Args:
        config: of ``timm.data.resolve_model_data_config``.
        where: what an error names.

    Raises:
        VividError: a key whose value cannot be expressed.
    """
    channels, height, width = config["input_size"]
    return square_preprocess(
        where,
        (height, width),
        ("crop_mode", RESIZE.get(config["crop_mode"], config["crop_mode"])),
        config["interpolation"],
        channels=channels,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize_to=math.floor(height / config["crop_pct"]),
    )


def _check_folder(folder: Path) -> None:
    """timm fills gaps in the preprocessing with ImageNet's; a folder has to say it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        said = config.get("pretrained_cfg", config)
        missing = [key for key in NEEDED if said.get(key) is None]
    except (OSError, ValueError, AttributeError) as error:
        raise VividError(f"timm:{folder}: has no config.json that can be read: {first_line(error)}") from error
    if missing:
        raise VividError(f"timm:{folder}: config.json does not say {', '.join(missing)} in pretrained_cfg")
