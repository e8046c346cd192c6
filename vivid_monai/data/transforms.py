"""The transforms of training: preprocessing with random augmentation in its middle."""

import math
from dataclasses import dataclass, fields

from monai.config import KeysCollection
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    ScaleIntensityRanged,
    Transform,
)

from vivid_monai.data.preprocess import Preprocess
from vivid_monai.errors import VividError


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How far training images are changed at random. The defaults are the paper's (arXiv 2603.09109), less its flip.

    Args:
        rotate: largest rotation either way, degrees.
        translate: largest shift along each axis, fraction of the image size.
        scale: largest change of size, fraction, drawn for each axis on its own.
        brightness: largest relative change of all values.
        contrast: largest relative change of the values' distances from the image's mean.
        flip: probability of a left-right flip. 0 unless asked for: the side of the heart is information too.

    Raises:
        VividError: a value outside its range.
    """

    rotate: float = 10.0
    translate: float = 0.05
    scale: float = 0.05
    brightness: float = 0.1
    contrast: float = 0.1
    flip: float = 0.0

    def __post_init__(self) -> None:
        limits = {"rotate": 180.0, "flip": 1.0}
        for field in fields(self):
            value, limit = getattr(self, field.name), limits.get(field.name, 0.999)
            if not 0 <= value <= limit:
                raise VividError(f"augment: {field.name} must be between 0 and {limit:g}, not {value!r}")


def train_transform(
    preprocess: Preprocess,
    augment: Augment | None = None,
    *,
    sided: bool | None = None,
    keys: KeysCollection = "image",
) -> Compose:
    """Path under each key → float32 tensor (channels, size, size), normalised and randomly changed.

    Everything up to the uint8 image is deterministic and comes first, so that it can be cached; augmentation works
    on values in [0, 1] and keeps them there; the weights' normalisation comes last.

    Args:
        preprocess: what the network's input is.
        augment: how far images are changed; None: :class:`Augment` with its defaults.
        sided: whether the label space tells left from right. Needed only with a flip.
        keys: keys that hold paths.

    Raises:
        VividError: a flip is asked for while the label space has sides, or without saying whether it has.
    """
    augment = augment or Augment()
    if augment.flip > 0 and sided is not False:
        why = "the label space tells left from right" if sided else "whether the label space has sides is not said"
        raise VividError(f"augment: flip = {augment.flip:g}, but {why}; set flip to 0 or sided to false")
    return Compose(
        [
            *preprocess.to_bytes(keys),
            *preprocess.to_unit(keys),
            *_random(augment, preprocess.size, keys),
            *preprocess.to_normal(keys),
        ]
    )


def _random(augment: Augment, size: int, keys: KeysCollection) -> list[Transform]:
    steps: list[Transform] = []
    if augment.flip:
        steps.append(RandFlipd(keys, prob=augment.flip, spatial_axis=1))
    if augment.rotate or augment.translate or augment.scale:
        steps.append(
            RandAffined(
                keys,
                prob=1.0,
                rotate_range=math.radians(augment.rotate),
                translate_range=(augment.translate * size,) * 2,
                scale_range=(augment.scale,) * 2,
                mode="bilinear",
                padding_mode="zeros",
            )
        )
    if augment.brightness:
        steps.append(RandScaleIntensityd(keys, factors=augment.brightness, prob=1.0))
    if augment.contrast:
        steps.append(RandScaleIntensityFixedMeand(keys, factors=augment.contrast, prob=1.0))
    if augment.brightness or augment.contrast:
        steps.append(ScaleIntensityRanged(keys, a_min=0, a_max=1, b_min=0, b_max=1, clip=True))
    return steps
