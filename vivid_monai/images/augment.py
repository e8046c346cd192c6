"""Random changes of training images: drawn item by item, done to a whole batch on its device."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from monai.transforms import Compose, RandAffineGrid, RandFlip, RandScaleIntensity, RandScaleIntensityFixedMean
from monai.utils import MAX_SEED
from torch import Tensor
from torch.nn.functional import grid_sample

from vivid_monai.errors import VividError
from vivid_monai.images.geometry import mirroring, move_boxes, resample, sampling_grid
from vivid_monai.images.preprocess import BasePreprocess

_AT_ONCE = 8  # images that are resampled together: more take twice as long on a CPU, in memory that is new each time


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How far training images are changed at random. The defaults are the paper's (arXiv 2603.09109), less its flip.

    Args:
        rotate: largest rotation either way, degrees; of a volume, about each axis.
        translate: largest shift along each axis, fraction of the image's size.
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


class Drawn(NamedTuple):
    """What an augmentation is going to do to one image, float32; of a batch, every tensor has its axis in front.

    Attributes:
        mirrored: (), 0 or 1.
        angle: (1,), radians; in 3-D (3,), about each axis of the grid.
        shift, scale: (S,), along each axis; shift in pixels.
        brightness, contrast: (), factors.
    """

    mirrored: Tensor
    angle: Tensor
    shift: Tensor
    scale: Tensor
    brightness: Tensor
    contrast: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Drawn":
        return Drawn(*(part.to(device, non_blocking=non_blocking) for part in self))

    @classmethod
    def stack(cls, items: Sequence["Drawn"]) -> "Drawn":
        return cls(*(torch.stack(parts) for parts in zip(*items, strict=True)))


class RandomAugmentation:
    """Flip, affine map, brightness and contrast, in this order, then the weights' normalisation; in 2-D and 3-D.

    What is random about an image is drawn from a seed where the item is made; all arithmetic is done to a batch at
    once, where the network is. One draw moves the image and its masks and boxes. Values stay in [0, 1] until they are
    normalised. The result is that of MONAI's ``RandFlip``, ``RandAffine`` (linear, zeros outside),
    ``RandScaleIntensity`` and ``RandScaleIntensityFixedMean``, seeded by one ``Compose``.

    Args:
        preprocess: what the network's input is.
        augment: how far images are changed; None: :class:`Augment` with its defaults.
        sided: whether the label space tells left from right. Needed only with a flip.

    Raises:
        VividError: a flip is asked for while the label space has sides, or without saying whether it has.
    """

    def __init__(
        self, preprocess: BasePreprocess, augment: Augment | None = None, *, sided: bool | None = None
    ) -> None:
        self.augment = augment = augment or Augment()
        if augment.flip > 0 and sided is not False:
            why = "the label space tells left from right" if sided else "whether the label space has sides is not said"
            raise VividError(f"augment: flip = {augment.flip:g}, but {why}; set flip to 0 or sided to false")
        self.preprocess, self.grid = preprocess, preprocess.shape[1:]
        self._mirror = preprocess.mirror_axis - len(self.grid)  # counted from the end, for whatever comes before
        self._flip = RandFlip(prob=augment.flip) if augment.flip else None
        self._affine: RandAffineGrid | None = None
        if augment.rotate or augment.translate or augment.scale:
            self._affine = RandAffineGrid(
                rotate_range=(math.radians(augment.rotate),) * (1 if len(self.grid) == 2 else 3),
                translate_range=tuple(augment.translate * size for size in self.grid),
                scale_range=(augment.scale,) * len(self.grid),
            )
        self._brightness = RandScaleIntensity(factors=augment.brightness, prob=1) if augment.brightness else None
        self._contrast = RandScaleIntensityFixedMean(factors=augment.contrast, prob=1) if augment.contrast else None
        steps = (self._flip, self._affine, self._brightness, self._contrast)
        self._random = Compose([step for step in steps if step is not None])
        shape = (preprocess.shape[0], *(1 for _ in self.grid))
        self._mean, self._std = (
            torch.tensor(numbers).expand(shape[0]).reshape(shape) for numbers in (preprocess.mean, preprocess.std)
        )

    def draw(self, seed: int) -> Drawn:
        """What happens to one image: a pure function of the seed."""
        # As Compose.set_random_state does, without the new generators that it makes: they take most of a draw.
        self._random.R.seed(seed % MAX_SEED)
        for step in self._random.transforms:
            step.R.seed(int(self._random.R.randint(MAX_SEED, dtype="uint32")))
        axes = len(self.grid)
        mirrored, brightness, contrast = 0.0, 1.0, 1.0
        angle, shift, scale = [0.0] * (1 if axes == 2 else 3), [0.0] * axes, [1.0] * axes
        if self._flip:
            self._flip.randomize(None)
            mirrored = float(self._flip._do_transform)
        if self._affine:
            # Twice, as RandAffined draws: results of this project were made with its second draw.
            self._affine.randomize()
            self._affine.randomize()
            drawn = (self._affine.rotate_params, self._affine.translate_params, self._affine.scale_params)
            angle, shift, scale = (part or default for part, default in zip(drawn, (angle, shift, scale), strict=True))
        if self._brightness:
            self._brightness.randomize()
            brightness = 1 + self._brightness.factor
        if self._contrast:
            self._contrast.randomize()
            contrast = 1 + self._contrast.factor
        return Drawn(
            *(torch.tensor(part, dtype=torch.float32) for part in (mirrored, angle, shift, scale, brightness, contrast))
        )

    def __call__(self, image: Tensor, drawn: Drawn) -> Tensor:
        """A batch (B, *stored_shape) of what a cache holds, and its draws on the same device → the network's input.

        Returns:
            float32 (B, C, *spatial), normalised.
        """
        each = (slice(None), *(None for _ in range(image.ndim - 1)))
        if self._flip:
            image = torch.where(drawn.mirrored[each] > 0, image.flip(self._mirror), image)
        image = self.preprocess.unit(image)
        if self._affine:
            image = self._moved(image, drawn)
        # In place: on a CPU, fresh memory for every step would take longer than the steps.
        if self._brightness:
            image.mul_(drawn.brightness[each])
        if self._contrast:
            mean = image.flatten(1).mean(1)[each]
            image.sub_(mean).mul_(drawn.contrast[each]).add_(mean)
        if self._brightness or self._contrast:
            image.clamp_(0, 1)
        mean, std = (numbers.to(image.device, non_blocking=True) for numbers in (self._mean, self._std))
        return (image - mean).div_(std)

    def batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of the loader with its image, masks and boxes as the network takes them.

        ``"mask"`` (B, 1, *spatial) or a list of (1, *spatial) and None is moved by the nearest pixel, ``"boxes"`` (a
        list of (n, 2 S), or one tensor) as :func:`~vivid_monai.images.geometry.move_boxes` has it; ``"matrix"`` goes on
        to lead from the pixels of the original image to the network's input. ``"drawn"`` is left out.
        """
        drawn = batch["drawn"]
        moved = {**batch, "image": self(batch["image"], drawn)}
        del moved["drawn"]
        if spatial := moved.keys() & {"mask", "boxes", "matrix"}:
            matrices = self.matrix(drawn)
            moves = {
                "mask": lambda mask, matrix: None if mask is None else resample(mask, matrix, self.grid),
                "boxes": lambda boxes, matrix: move_boxes(matrix, boxes),
                "matrix": lambda before, matrix: matrix @ before,
            }
            for key in spatial:
                parts = [moves[key](part, matrix) for part, matrix in zip(batch[key], matrices, strict=True)]
                moved[key] = torch.stack(parts) if isinstance(batch[key], Tensor) else parts
        return moved

    def matrix(self, drawn: Drawn) -> Tensor:
        """Index in the network's grid before the augmentation → after it, float64 (B, S + 1, S + 1)."""
        mirror = torch.from_numpy(mirroring(self.grid, len(self.grid) + self._mirror)).to(drawn.mirrored.device)
        still = torch.eye(len(mirror), dtype=torch.float64, device=mirror.device)
        flips = torch.where(drawn.mirrored[:, None, None] > 0, mirror, still)
        return torch.linalg.inv(_back(drawn, self.grid)) @ flips

    def _moved(self, image: Tensor, drawn: Drawn) -> Tensor:
        if len(self.grid) == 2:
            parts = [part.split(_AT_ONCE) for part in (image, drawn.angle[:, 0], drawn.shift, drawn.scale)]
            return torch.cat(list(map(_resample, *parts)))
        grids = (sampling_grid(back[None], self.grid, self.grid).float() for back in _back(drawn, self.grid))
        return torch.cat(
            [grid_sample(one[None], grid, align_corners=False) for one, grid in zip(image, grids, strict=True)]
        )


def _back(drawn: Drawn, grid: Sequence[int]) -> Tensor:
    """Where a pixel of the augmented image lay before its affine map: float64 (B, S + 1, S + 1), indices.

    From the grid's centre, as MONAI's ``RandAffine`` has it: rotation · (shift + scale · pixel); in 3-D the rotation is
    that about the first axis times that about the second times that about the third.
    """
    angle, shift, scale = (part.double() for part in (drawn.angle, drawn.shift, drawn.scale))
    axes = len(grid)
    rotation = torch.eye(axes, dtype=torch.float64, device=angle.device).repeat(len(angle), 1, 1)
    for number, (one, other) in enumerate([(0, 1)] if axes == 2 else [(1, 2), (2, 0), (0, 1)]):
        turn = torch.eye(axes, dtype=torch.float64, device=angle.device).repeat(len(angle), 1, 1)
        cos, sin = angle[:, number].cos(), angle[:, number].sin()
        turn[:, one, one], turn[:, one, other], turn[:, other, one], turn[:, other, other] = cos, -sin, sin, cos
        rotation = rotation @ turn
    centre = (torch.tensor(list(grid), dtype=torch.float64).to(angle.device) - 1) / 2
    back = torch.eye(axes + 1, dtype=torch.float64, device=angle.device).repeat(len(angle), 1, 1)
    back[:, :-1, :-1] = rotation * scale[:, None]
    back[:, :-1, -1] = (rotation @ (shift - scale * centre)[:, :, None])[:, :, 0] + centre
    return back


def _resample(image: Tensor, angle: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Square images float32 (B, C, S, S), as :func:`_back` has it; bilinear, zero outside the image.

    Coordinates are float64, as MONAI resamples: in float32 some are 1e-5 pixels off.
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
