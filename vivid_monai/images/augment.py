"""Random changes of training images: drawn item by item, done to a whole batch on its device."""

import math
from dataclasses import dataclass, fields

import torch
from monai.transforms import Compose, RandAffineGrid, RandFlip, RandScaleIntensity, RandScaleIntensityFixedMean
from monai.utils import MAX_SEED
from torch import Tensor
from torch.nn.functional import grid_sample

from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess

_AT_ONCE = 8  # images that are resampled together: more take twice as long on a CPU, in memory that is new each time


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


class RandomAugmentation:
    """Flip, affine map, brightness and contrast, in this order, then the weights' normalisation.

    What is random about an image is drawn from a seed where the item is made, by MONAI's transforms, and is eight
    numbers; all arithmetic on pixels is done to a batch at once, where the network is. Values stay in [0, 1] until they
    are normalised. The result is that of MONAI's ``RandFlip``, ``RandAffine`` (bilinear, zeros outside),
    ``RandScaleIntensity`` and ``RandScaleIntensityFixedMean``, seeded by one ``Compose``.

    Args:
        preprocess: what the network's input is.
        augment: how far images are changed; None: :class:`Augment` with its defaults.
        sided: whether the label space tells left from right. Needed only with a flip.

    Raises:
        VividError: a flip is asked for while the label space has sides, or without saying whether it has.
    """

    def __init__(self, preprocess: Preprocess, augment: Augment | None = None, *, sided: bool | None = None) -> None:
        self.augment = augment = augment or Augment()
        if augment.flip > 0 and sided is not False:
            why = "the label space tells left from right" if sided else "whether the label space has sides is not said"
            raise VividError(f"augment: flip = {augment.flip:g}, but {why}; set flip to 0 or sided to false")
        self._flip = RandFlip(prob=augment.flip) if augment.flip else None
        self._affine = _affine(augment, preprocess.size)
        self._brightness = RandScaleIntensity(factors=augment.brightness, prob=1) if augment.brightness else None
        self._contrast = RandScaleIntensityFixedMean(factors=augment.contrast, prob=1) if augment.contrast else None
        steps = (self._flip, self._affine, self._brightness, self._contrast)
        self._random = Compose([step for step in steps if step is not None])
        channels = max(preprocess.channels, preprocess.slices)
        self._mean, self._std = (
            torch.tensor(numbers).expand(channels)[:, None, None] for numbers in (preprocess.mean, preprocess.std)
        )

    def draw(self, seed: int) -> Tensor:
        """What happens to one image: a pure function of the seed.

        Returns:
            float32 (8,): whether it is mirrored (0 or 1), its angle (radians), shift along rows and columns (pixels),
            scale along rows and columns, brightness factor, contrast factor.
        """
        self._seed(seed)
        mirrored, angle, shift, scale, brightness, contrast = 0.0, 0.0, [0.0, 0.0], [1.0, 1.0], 1.0, 1.0
        if self._flip:
            self._flip.randomize(None)
            mirrored = float(self._flip._do_transform)
        if self._affine:
            # Twice, as RandAffined draws: results of this project were made with its second draw.
            self._affine.randomize()
            self._affine.randomize()
            drawn = (self._affine.rotate_params, self._affine.translate_params, self._affine.scale_params)
            (angle,), shift, scale = (part or [] for part in drawn)
        if self._brightness:
            self._brightness.randomize()
            brightness = 1 + self._brightness.factor
        if self._contrast:
            self._contrast.randomize()
            contrast = 1 + self._contrast.factor
        return torch.tensor([mirrored, angle, *shift, *scale, brightness, contrast], dtype=torch.float32)

    def __call__(self, image: Tensor, drawn: Tensor) -> Tensor:
        """A batch as the network takes it.

        Args:
            image: uint8 (B, slices, size, size), of :meth:`Preprocess.to_bytes`.
            drawn: float32 (B, 8), of :meth:`draw`, on the same device.

        Returns:
            float32 (B, C, size, size), normalised.
        """
        brightness, contrast = (drawn[:, column, None, None, None] for column in (6, 7))
        if self._flip:
            image = torch.where(drawn[:, 0, None, None, None] > 0, image.flip(-1), image)
        image = image / 255
        if self._affine:
            parts = zip(image.split(_AT_ONCE), drawn.split(_AT_ONCE), strict=True)
            image = torch.cat([_resample(part, d[:, 1], shift=d[:, 2:4], scale=d[:, 4:6]) for part, d in parts])
        # In place: on a CPU, fresh memory for every step would take longer than the steps.
        if self._brightness:
            image.mul_(brightness)
        if self._contrast:
            mean = image.flatten(1).mean(1)[:, None, None, None]
            image.sub_(mean).mul_(contrast).add_(mean)
        if self._brightness or self._contrast:
            image.clamp_(0, 1)
        mean, std = self._mean.to(image.device), self._std.to(image.device)
        return (image - mean).div_(std)

    def _seed(self, seed: int) -> None:
        """As ``Compose.set_random_state`` does, without the new generators that it makes: they take most of a draw."""
        self._random.R.seed(seed % MAX_SEED)
        for step in self._random.transforms:
            step.R.seed(int(self._random.R.randint(MAX_SEED, dtype="uint32")))


def _affine(augment: Augment, size: int) -> RandAffineGrid | None:
    """Draws of an affine map; pixels from the image's centre, rows before columns."""
    if not (augment.rotate or augment.translate or augment.scale):
        return None
    return RandAffineGrid(
        rotate_range=math.radians(augment.rotate),
        translate_range=(augment.translate * size,) * 2,
        scale_range=(augment.scale,) * 2,
    )


def _resample(image: Tensor, angle: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Where MONAI's ``RandAffine`` looks: a pixel of the result is the image at rotation · (shift + scale · pixel).

    Coordinates are float64, as MONAI resamples: in float32 some are 1e-5 pixels off.

    Args:
        image: float32 (B, C, S, S).
        angle: (B,), radians.
        shift, scale: (B, 2), along rows and columns; shift in pixels.

    Returns:
        float32 (B, C, S, S); bilinear, zero outside the image.
    """
    size = image.shape[-1]
    angle, shift, scale = angle.double(), shift.double(), scale.double()
    # In the units of grid_sample: the image reaches from -1 to 1.
    axis = torch.arange(1 - size, size, 2, dtype=torch.float64, device=image.device) / size
    rows, columns = (scale[:, :, None] * axis + 2 / size * shift[:, :, None]).unbind(1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    grid = axis.new_empty(len(image), size, size, 2)
    torch.add((sin * rows)[:, :, None], (cos * columns)[:, None], out=grid[..., 0])
    torch.sub((cos * rows)[:, :, None], (sin * columns)[:, None], out=grid[..., 1])
    return grid_sample(image.double(), grid, mode="bilinear", padding_mode="zeros", align_corners=False).float()
