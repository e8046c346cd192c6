"""The configs of a bundle: the templates beside this file, filled with what belongs to the weights."""

import json
from importlib import resources
from typing import Any

from vivid_monai.deploy.network import network_layers
from vivid_monai.images.augment import Augment
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import Classifier

Config = dict[str, Any]

_SIDES = {"pad": "longest", "crop": "shortest", "stretch": "both"}
_TEMPLATES = resources.files("vivid_monai.deploy.bundle") / "configs"


def bundle_configs(classifier: Classifier, preprocess: Preprocess) -> dict[str, Config]:
    """File name → content of every config but metadata.json.

    Raises:
        VividError: the network cannot be put into a bundle.
    """
    configs = {
        file.name: json.loads(file.read_text(encoding="utf-8"))
        for file in _TEMPLATES.iterdir()
        if file.name.endswith(".json")
    }
    layers = network_layers(classifier.encoder.config, n_fields=classifier.head.out_features, pool=classifier.pool)
    unit, normal = to_unit(preprocess), to_normal(preprocess)
    inference, train = configs["inference.json"], configs["train.json"]
    inference["layers"] = train["layers"] = layers
    inference["preprocessing"]["transforms"] = [*unit, *normal]
    train["to_unit"], train["to_normal"] = unit, normal
    shift = round(Augment().translate * preprocess.size, 3)
    train["train"]["random_transforms"][0]["translate_range"] = [shift, shift]
    return configs


def to_unit(preprocess: Preprocess) -> list[Config]:
    """Path → float32 tensor (slices, size, size) in [0, 1]: ``Preprocess.to_bytes`` and ``to_unit`` as config."""
    square = [preprocess.size, preprocess.size]
    window = None if preprocess.window is None else list(preprocess.window)
    return [
        _transform("scripts.preprocess.ReadImaged", window=window, slices=preprocess.slices),
        _transform(
            "scripts.preprocess.ResizeAntialiasedd",
            size=preprocess.resize_to,
            side=_SIDES[preprocess.resize],
            interpolation=preprocess.interpolation,
        ),
        _transform("SpatialPadd", spatial_size=square)
        if preprocess.resize == "pad"
        else _transform("CenterSpatialCropd", roi_size=square),
        _transform("scripts.preprocess.ToBytesd"),
        _transform("ScaleIntensityRanged", a_min=0, a_max=255, b_min=0, b_max=1),
    ]


def to_normal(preprocess: Preprocess) -> list[Config]:
    """Tensor in [0, 1] → (C, size, size), normalised: ``Preprocess.to_normal`` as config."""
    repeat = max(1, preprocess.slices // preprocess.channels)
    mean, std = (list(numbers) * repeat for numbers in (_tuple(preprocess.mean), _tuple(preprocess.std)))
    copies = [_transform("RepeatChanneld", repeats=preprocess.channels)]
    return [
        *(copies if preprocess.channels > preprocess.slices else []),
        _transform("NormalizeIntensityd", subtrahend=mean, divisor=std, channel_wise=True),
    ]


def _tuple(numbers: float | tuple[float, ...]) -> tuple[float, ...]:
    return numbers if isinstance(numbers, tuple) else (numbers,)


def _transform(target: str, **arguments: Any) -> Config:
    return {"_target_": target, "keys": "image", **arguments}
