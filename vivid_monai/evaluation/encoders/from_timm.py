"""timm's models as encoders: by name, from the hub, or from a folder of ``timm.models.save_for_hf``."""

import math
from pathlib import Path

import torch

from vivid_monai.errors import VividError, first_line
from vivid_monai.evaluation.encoders.base import VividEncoder, library_encoder, square_preprocess
from vivid_monai.networks.checkpoint import read_json
from vivid_monai.networks.library import import_library

NEEDED = ("input_size", "mean", "std", "interpolation", "crop_pct")
RESIZE = {"center": "crop", "squash": "stretch"}


def load_timm(name: str, *, pool: str | None = None, pretrained: bool = True) -> VividEncoder:
    """The encoder of a folder with config.json and weights, or of a name that timm knows (``hf-hub:…`` too).

    "pooled" is what timm pools before its classifier.

    Args:
        pretrained: False: fresh weights; no file of weights is needed.

    Raises:
        VividError: timm is not installed; there is no such model; its weights are not those of the architecture; its
            preprocessing is not complete or cannot be expressed.
    """
    timm, source, folder = import_library("timm", "timm"), f"timm:{name}", Path(name).expanduser()
    if folder.exists():  # timm fills gaps in the preprocessing with ImageNet's; a folder has to say it
        config = read_json(folder, "config.json")
        said = config.get("pretrained_cfg", config)
        if missing := [key for key in NEEDED if said.get(key) is None]:
            raise VividError(f"{source}: has no config.json that says {', '.join(missing)} in pretrained_cfg")
    place = f"local-dir:{folder}" if folder.exists() else name
    try:
        # With the classifier, which is loaded strictly; asked for no classes, timm would let anything be missing. What
        # the random weights take of the seed is given back, for those of the encoder.
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(place, pretrained=pretrained)
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
    builds = {"architecture": model.pretrained_cfg["architecture"], **timm.models.get_model_args(model)}
    model.reset_classifier(0)
    tensors = model.state_dict() if pretrained else None
    return library_encoder("timm", builds, preprocess, pool=pool, source=source, tensors=tensors)
