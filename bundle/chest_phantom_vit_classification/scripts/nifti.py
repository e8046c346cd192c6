"""Axial slices of NIfTI volumes, turned the way radiologists look at them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from .raster import MAX_PIXELS

MAX_VOXELS = 2**29
"""Of a volume: 2,048 slices of 512 x 512. A gzipped file is a thousandth of what it holds, where that is all air."""
_PART = 2**26  # voxels; most volumes are smaller
_RADIOLOGICAL = axcodes2ornt("LPS")  # index grows towards Left, Posterior, Superior


def read_nifti(
    path: Path, *, slice: int | None = None, slices: int = 1, window: tuple[float, float] | None = None
) -> np.ndarray:
    """Read one axial slice as float (H, W) in [0, 1], or three neighbouring ones as (3, H, W).

    Rows run from anterior to posterior and columns from the patient's right to left (patient left on image right),
    by the axes of the affine matrix that are closest; oblique volumes are not resampled. Without an orientation in the
    header it is that of NIfTI's method 1 (left, anterior, superior).

    Args:
        slice: index along the inferior→superior axis, 0 = most inferior; needed unless there is only one slice.
        slices: 1; or 3 for the slice below `slice`, the slice itself and the one above. Where the volume ends, its
            last slice stands for the one that is not there.
        window: (centre, width) in the volume's unit, HU for CT. Without it the smallest to the largest value of the
            whole volume are scaled, so that slices of one volume stay comparable.

    Raises:
        ValueError: not two- or three-dimensional grey values, no or a wrong slice index, constant without a window,
            neighbours wanted of the only slice there is.
    """
    slab, volume = _axial_slab(path, slice, slices)
    if window is not None:
        centre, width = window
        low, high = centre - width / 2, centre + width / 2
    else:
        low, high = _range(volume)
        if low == high:
            raise ValueError(f"every voxel is {low:g}, and no window says how bright that is")
    pixels = np.clip((slab.astype(np.float64) - low) / (high - low), 0, 1)
    return pixels[0] if slices == 1 else pixels


def read_nifti_labels(path: Path, *, slice: int | None = None) -> np.ndarray:
    """The stored values (H, W) of one axial slice of a mask, turned as :func:`read_nifti` turns images."""
    return _axial_slab(path, slice, 1)[0][0]


def _axial_slab(path: Path, index: int | None, slices: int) -> tuple[np.ndarray, nibabel.Nifti1Image]:
    """Neighbouring axial slices (slices, H, W) in the file's own values; the rest of the volume is not read."""
    volume = open_nifti(path)
    shape = tuple(volume.shape) + (1,) * (3 - len(volume.shape))
    turn = ornt_transform(io_orientation(volume.affine), _RADIOLOGICAL)
    axial = int(np.flatnonzero(turn[:, 0] == 2)[0])
    depth = shape[axial]
    rows_columns = [n for axis, n in enumerate(shape[:3]) if axis != axial]
    if depth > 1 and 1 in rows_columns:
        raise ValueError(f"has shape {volume.shape} with one voxel across the axial plane; it holds no axial slices")
    if rows_columns[0] * rows_columns[1] > MAX_PIXELS:
        raise ValueError(f"slices of {rows_columns} voxels are more than the {MAX_PIXELS:,} pixels allowed")
    if index is None and depth > 1:
        raise ValueError(f"is a volume of {depth} axial slices; say which one is meant (slice=0 … {depth - 1})")
    index = index or 0
    if not 0 <= index < depth:
        raise ValueError(f"has no slice {index}; its {depth} axial slices count from 0 to {depth - 1}")
    if slices not in (1, 3) or (slices == 3 and depth == 1):
        raise ValueError(f"has {depth} axial slices; {slices} neighbouring ones cannot be had (1 or 3)")

    reach = slices // 2
    wanted = np.clip(np.arange(index - reach, index + reach + 1), 0, depth - 1)
    stored = depth - 1 - wanted if turn[axial, 1] < 0 else wanted
    # Turning the axes reverses the order of the taken slices where the volume is stored from top to bottom.
    taken = np.sort(stored)
    first = int(taken[0])
    if len(volume.shape) < 3:
        some = np.asanyarray(volume.dataobj).reshape(shape)
    else:
        part: list[Any] = [np.s_[:]] * len(volume.shape)
        part[axial] = np.s_[first : int(taken[-1]) + 1]
        some = np.asanyarray(volume.dataobj[tuple(part)])
    some = some.reshape(some.shape[:3])
    slab = apply_orientation(np.take(some, taken - first, axis=axial), turn)
    return slab.transpose(2, 1, 0), volume


def _range(volume: nibabel.Nifti1Image) -> tuple[float, float]:
    """The smallest and the largest value, not finite where one is; of a large volume, a part at a time is in memory."""
    wanted: list[Any] = [np.s_[:]]  # all of an image without a third axis
    if len(volume.shape) > 2:
        step = max(1, _PART // (volume.shape[0] * volume.shape[1]))
        wanted = [np.s_[:, :, first : first + step] for first in range(0, volume.shape[2], step)]
    parts = (np.asanyarray(volume.dataobj[part]) for part in wanted)
    ends = np.array([(part.min(), part.max()) for part in parts])
    return float(ends.min()), float(ends.max())


def open_nifti(path: Path, *, axes: int = 0) -> nibabel.Nifti1Image:
    """A file of one volume of grey values with at least `axes` axes; a ValueError where it is none."""
    volume = nibabel.load(path)
    if not isinstance(volume, nibabel.Nifti1Image):
        raise ValueError(f"is {type(volume).__name__}, not NIfTI")
    if volume.header.get_data_dtype().kind not in "iuf":
        raise ValueError(f"holds {volume.header.get_data_dtype()} values, not grey ones")
    if len(volume.shape) < axes or any(n != 1 for n in volume.shape[3:]) or 0 in volume.shape:
        raise ValueError(f"has shape {volume.shape}; one volume (X, Y, Z) with voxels is needed")
    require_few(volume.shape)
    return volume


def require_few(shape: Sequence[int]) -> None:
    """Raise a ValueError where a volume has more voxels than `MAX_VOXELS`."""
    if (voxels := math.prod(shape)) > MAX_VOXELS:
        raise ValueError(f"has {voxels:,} voxels, more than the {MAX_VOXELS:,} allowed")
