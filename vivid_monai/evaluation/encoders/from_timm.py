"""timm's models as encoders: by name, from the hub, or from a folder of ``timm.models.save_for_hf``."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from vivid_monai.errors import VividError, first_line
from vivid_monai.evaluation.encoders.base import Encoder, library, square_preprocess, structure
from vivid_monai.networks.checkpoint import read_json
from vivid_monai.networks.pooling import choose_pool

NEEDED = ("input_size", "mean", "std", "interpolation", "crop_pct")
RESIZE = {"center": "crop", "squash": "stretch"}


class TimmEncoder(Encoder):
    """A timm network without its classifier; "pooled" is what timm pools before it."""

    kind = "timm"

    def tokens(self, images: Tensor) -> Tensor:
        return self.network.forward_features(images)


def load_timm(name: str, *, pool: str | None = None) -> TimmEncoder:
    """The encoder of a folder with config.json and weights, or of a name that timm knows (``hf-hub:…`` too).

    Raises:
        VividError: timm is not installed; there is no such model; its weights are not those of the architecture; its
            preprocessing is not complete or cannot be expressed.
    """
    timm, source, folder = library("timm", "timm"), f"timm:{name}", Path(name).expanduser()
    if folder.exists():  # timm fills gaps in the preprocessing with ImageNet's; a folder has to say it
        config = read_json(folder, "config.json")
        said = config.get("pretrained_cfg", config)
        if missing := [key for key in NEEDED if said.get(key) is None]:
            raise VividError(f"{source}: has no config.json that says {', '.join(missing)} in pretrained_cfg")
    try:
        # With the classifier, which is loaded strictly; asked for no classes, timm would let anything be missing.
        model = timm.create_model(f"local-dir:{folder}" if folder.exists() else name, pretrained=True)
    except Exception as error:  # timm, safetensors and the hub each raise their own kinds
        raise VividError(f"{source}: cannot be loaded: {first_line(error)}") from error
    if model.num_classes != model.pretrained_cfg.get("num_classes"):  # then timm would not have been strict
        raise VividError(
            f"{source}: num_classes is {model.num_classes} in the arguments of the model and "
            f"{model.pretrained_cfg.get('num_classes')} in pretrained_cfg; its weights cannot be checked"
        )
    config = timm.data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    preprocess = square_preprocess(
        source,
        (height, width),
        ("crop_mode", config["crop_mode"], RESIZE),
        config["interpolation"],
        channels=channels,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize_to=math.floor(height / config["crop_pct"]),
    )
    model.reset_classifier(0)
    return TimmEncoder(
        model,
        preprocess,
        pool=timm_pool(model, pool),
        prefix=getattr(model, "num_prefix_tokens", 0),
        source=source,
        architecture=str(model.pretrained_cfg["architecture"]),
        settings=structure(model),
    )


def timm_pool(model: Any, asked: str | None) -> str:
    """The pooling of a timm network for the one asked for."""
    cls = getattr(model, "cls_token", None) is not None
    return choose_pool(asked, cls=cls, patches=hasattr(model, "num_prefix_tokens"))
