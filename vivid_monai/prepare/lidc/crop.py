"""Cut three slices around a nodule out of a CT series, every crop with the same millimetres and pixels."""

from dataclasses import dataclass

import nibabel
import numpy as np
from scipy.ndimage import map_coordinates

from vivid_monai.errors import VividError
from vivid_monai.images.volume import AIR, Series

MAX_GAP = 5.5
"""mm. The coarsest scans of LIDC-IDRI have a slice every 5 mm; nothing is interpolated over a wider gap."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class CropError(ValueError):
    """No crop can be cut; the message says why."""


@dataclass(frozen=True, kw_only=True)
class CropRule:
    """What is cut.

    Args:
        crop_mm: side of the square.
        pixel_mm: its pixels.
        slice_mm: distance of the lower and of the upper slice from the middle one.

    Raises:
        VividError: a number that cannot be meant.
    """

    crop_mm: float = 50.0
    pixel_mm: float = 0.5
    slice_mm: float = 2.5

    def __post_init__(self) -> None:
        if not (0 < self.pixel_mm <= 5 and 2 * self.pixel_mm <= self.crop_mm <= 500 and 0 < self.slice_mm <= 50):
            raise VividError(
                f"crop of {self.crop_mm:g} mm with pixels of {self.pixel_mm:g} mm and slices {self.slice_mm:g} mm "
                "apart: pixels must be above 0 and up to 5 mm, the crop two pixels to 500 mm, slices up to 50 mm apart"
            )

    @property
    def pixels(self) -> int:
        """Pixels along each side."""
        return round(self.crop_mm / self.pixel_mm)


def cut(series: Series, sop_uid: str, x: float, y: float, rule: CropRule) -> nibabel.Nifti1Image:
    """Cut a crop whose middle is column x and row y of a slice.

    The middle slice is that acquired slice, resampled linearly in its plane only. The other two lie ``slice_mm`` below
    and above it and are interpolated linearly between the two acquired slices next to them. Outside the scan is air
    (−1024 HU).

    Returns:
        int16 HU, shape (pixels, pixels, 3), index growing to the patient's left, back and head as near as the planes
        of the scan allow; slice 1 is the middle one; the affine gives scanner coordinates in mm.

    Raises:
        CropError: the slice is not in the series, or a slice would be interpolated over a gap above `MAX_GAP`.
        Exception: pixel data that cannot be decoded, as `read_values` raises it.
    """
    middle = series.index.get(sop_uid)
    if middle is None:
        raise CropError(f"the series has no slice {sop_uid}")
    left, back = _plane_axes(series)
    centre = np.array(series.patient_position(middle, x, y))
    offsets = (np.arange(rule.pixels) - (rule.pixels - 1) / 2) * rule.pixel_mm
    plane = offsets[:, None, None] * left + offsets[None, :, None] * back  # (X, Y, 3), mm
    planes = [
        _plane(series, centre + plane + step * rule.slice_mm * series.up, middle if step == 0 else None)
        for step in (-1, 0, 1)
    ]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([left * rule.pixel_mm, back * rule.pixel_mm, series.up * rule.slice_mm], axis=1)
    affine[:3, 3] = centre + offsets[0] * (left + back) - rule.slice_mm * series.up
    stored = np.clip(np.rint(np.stack(planes, axis=2)), AIR, np.iinfo(np.int16).max).astype(np.int16)
    image = nibabel.Nifti1Image(stored, _LPS_TO_RAS @ affine)
    image.header.set_xyzt_units("mm")
    return image


def _plane_axes(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """The directions of rows and columns, turned to the patient's left and back."""
    across, along = series.along_row, series.down
    if abs(across[0]) < abs(along[0]):
        across, along = along, across
    return across * np.sign(across[0]), along * np.sign(along[1])


def _plane(series: Series, points: np.ndarray, place: int | None) -> np.ndarray:
    """HU at points (X, Y, 3) of one plane parallel to the slices; ``place`` is the slice it lies on, where it does."""
    if place is not None:
        return _sample(series, place, points)
    heights = series.heights
    height = float(points[0, 0] @ series.up)
    nearest = int(np.abs(heights - height).argmin())
    if abs(heights[nearest] - height) < 1e-3:
        return _sample(series, nearest, points)
    upper = int(np.searchsorted(heights, height))
    if upper in (0, len(heights)):
        return np.full(points.shape[:2], AIR)
    gap = heights[upper] - heights[upper - 1]
    if gap > MAX_GAP:
        raise CropError(f"slices are missing: the next ones are {gap:g} mm apart (at most {MAX_GAP:g})")
    weight = (height - heights[upper - 1]) / gap
    return (1 - weight) * _sample(series, upper - 1, points) + weight * _sample(series, upper, points)


def _sample(series: Series, place: int, points: np.ndarray) -> np.ndarray:
    """A slice at the points, projected along its normal; linear between pixels, air outside."""
    rows, columns = series.spacing
    inside = points - series.slices[place].position
    coordinates = np.stack([inside @ series.down / rows, inside @ series.along_row / columns])
    return map_coordinates(series.values(place), coordinates, output=np.float64, order=1, mode="constant", cval=AIR)
