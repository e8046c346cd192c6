"""CT volumes of a body of water in air, with bright spots, in NIfTI files of any orientation."""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

AFFINES = {
    "as NIfTI has it": np.diag([-2.0, 2, 3, 1]),
    "flipped": np.array([[2.0, 0, 0, -40], [0, -2, 0, 11], [0, 0, -3, 7], [0, 0, 0, 1]]),
    "other axes": np.array([[0, 2.5, 0, 3], [0, 0, -2, 0], [3.0, 0, 0, -5], [0, 0, 0, 1]]),
    "oblique": np.array([[1.88, 0.684, 0, 1], [-0.684, 1.88, 0, 2], [0, 0, 3.0, 3], [0, 0, 0, 1]]),
}
SHAPE = (40, 36, 30)


def body(shape: Sequence[int] = SHAPE, spots: Sequence[Sequence[float]] = (), *, radius: float = 3.0) -> np.ndarray:
    """float32 (X, Y, Z) in HU: air, an ellipsoid of water, and smooth spots of up to 1000 HU above it."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    middle = (np.array(shape) - 1) / 2
    values = np.where((((index - middle) / (0.45 * np.array(shape))) ** 2).sum(-1) < 1, 0.0, -1000.0)
    for spot in spots:
        values += 1000 * np.exp(-((index - spot) ** 2).sum(-1) / (2 * radius**2))
    return values.astype(np.float32)


def save(values: np.ndarray, path: Path, affine: np.ndarray = AFFINES["as NIfTI has it"]) -> Path:
    image = nibabel.Nifti1Image(values, affine)
    nibabel.save(image, path)
    return path
