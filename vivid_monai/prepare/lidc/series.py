"""A CT series: its slices in order, and where their pixels lie in the patient."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pydicom

from vivid_monai.images.dicom import read_values

AIR = -1024.0
"""HU of air, of padding (values below, and PixelPaddingValue), and of what lies outside the scan."""

_TAGS = [
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
]


class SeriesError(ValueError):
    """A series that nodules cannot be cut from; the message says why."""


@dataclass(frozen=True)
class Slice:
    """One file. ``position``: centre of its first pixel, mm, DICOM patient coordinates (left, back, up)."""

    path: str
    sop_uid: str
    position: np.ndarray


@dataclass(frozen=True)
class Series:
    """Axial slices of one size, spacing and orientation, from inferior to superior.

    Attributes:
        spacing: distance of rows, distance of columns, mm (DICOM's PixelSpacing).
        along_row: unit vector in which the column index x grows.
        down: unit vector in which the row index y grows.
        left_out: why slices of the series are not among ``slices`` → how many.
    """

    patient_id: str
    study_uid: str
    slices: tuple[Slice, ...]
    spacing: tuple[float, float]
    along_row: np.ndarray
    down: np.ndarray
    left_out: Counter[str]

    @cached_property
    def index(self) -> dict[str, int]:
        """SOP instance UID → index."""
        return {one.sop_uid: place for place, one in enumerate(self.slices)}

    @cached_property
    def up(self) -> np.ndarray:
        """Unit vector across the slices, towards the head."""
        return _up(self.along_row, self.down)

    @cached_property
    def heights(self) -> np.ndarray:
        """Position of each slice along `up`, mm, ascending."""
        return np.array([one.position @ self.up for one in self.slices])

    @property
    def gaps(self) -> np.ndarray:
        """Distances of neighbouring slices, mm; slices at the same place count once."""
        steps = np.diff(self.heights)
        return steps[steps > 1e-3]

    @property
    def step(self) -> float | None:
        """Median distance of the slices, mm; ``None`` for a single one."""
        return float(np.median(self.gaps)) if len(self.gaps) else None

    @property
    def regular(self) -> bool:
        """Whether all slices are equally far apart (to 10 %), none missing and none twice."""
        steps, step = np.diff(self.heights), self.step
        return step is not None and bool(np.all(np.abs(steps - step) < 0.1 * step))

    def patient_position(self, place: int, x: float, y: float) -> tuple[float, float, float]:
        """Patient coordinates, mm, of column x and row y of a slice."""
        rows, columns = self.spacing
        left, back, up = self.slices[place].position + x * columns * self.along_row + y * rows * self.down
        return float(left), float(back), float(up)

    def index_at(self, place: int, x: float, y: float, z_mm: float) -> float:
        """The slice index, with decimals, where pixel (x, y) is at the patient's height ``z_mm``."""
        own = self.patient_position(place, x, y)[2]
        along = self.heights[place] + (z_mm - own) * self.up[2]
        return float(np.interp(along, self.heights, np.arange(len(self.slices))))

    def values(self, place: int) -> np.ndarray:
        """The slice in HU, float32 (H, W), at least `AIR`. Damage raises what `read_values` raises."""
        return self._values(place)

    @cached_property
    def _values(self) -> Callable[[int], np.ndarray]:
        """Neighbouring nodules share slices: the last 32 (of 512 × 512 pixels: 32 MB) are kept, with the series."""
        return lru_cache(maxsize=32)(lambda place: _hounsfield(self.slices[place].path))


def _hounsfield(path: str) -> np.ndarray:
    values, padding = read_values(Path(path))
    return np.where(padding, AIR, np.maximum(values, AIR)).astype(np.float32)


def read_series(paths: Sequence[str]) -> Series:
    """Read the headers of a series and sort its slices.

    Slices that differ from most in size, spacing or orientation, lack their geometry, cannot be read, or repeat a SOP
    instance are left out and counted.

    Raises:
        SeriesError: no slice is left, they are not axial, or the files name two patients.
    """
    left_out: Counter[str] = Counter()
    headers: dict[str, tuple[str, pydicom.Dataset]] = {}
    for path in paths:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        except Exception:  # what a damaged header makes pydicom raise is not told anywhere
            left_out["unreadable header"] += 1
            continue
        if not _is_complete(header):
            left_out["no position, orientation, spacing or size"] += 1
        elif str(header.SOPInstanceUID) in headers:
            left_out["the same slice again"] += 1
        else:
            headers[str(header.SOPInstanceUID)] = (path, header)
    kinds = Counter(_kind(header) for _, header in headers.values())
    if not kinds:
        raise SeriesError(f"none of its {len(paths)} files is a slice with a geometry ({_listed(left_out)})")
    kind, n = kinds.most_common(1)[0]
    if len(headers) > n:
        left_out["another size, spacing or orientation"] = len(headers) - n
    kept = {uid: entry for uid, entry in headers.items() if _kind(entry[1]) == kind}
    patients = {str(header.get("PatientID") or "") for _, header in kept.values()}
    if len(patients) > 1:
        raise SeriesError(f"its files name {len(patients)} patients: {', '.join(sorted(patients))}")

    first = next(iter(kept.values()))[1]
    along_row, down = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    up = _up(along_row, down)
    if not up[2] > 0.7:
        raise SeriesError("its slices are not axial")
    slices = [Slice(path, uid, np.array(h.ImagePositionPatient, float)) for uid, (path, h) in kept.items()]
    slices.sort(key=lambda one: (float(one.position @ up), one.sop_uid))
    rows, columns = (float(v) for v in first.PixelSpacing)
    return Series(
        patient_id=patients.pop(),
        study_uid=str(first.get("StudyInstanceUID") or ""),
        slices=tuple(slices),
        spacing=(rows, columns),
        along_row=along_row,
        down=down,
        left_out=left_out,
    )


def _is_complete(header: pydicom.Dataset) -> bool:
    try:
        sizes = [np.array(header.get(tag), float).shape for tag in _TAGS[4:]]
    except (TypeError, ValueError):
        return False
    return bool(header.get("SOPInstanceUID")) and sizes == [(3,), (6,), (2,), (), ()] and min(header.PixelSpacing) > 0


def _up(along_row: np.ndarray, down: np.ndarray) -> np.ndarray:
    normal = np.cross(along_row, down)
    return normal * np.sign(normal[2])


def _kind(header: pydicom.Dataset) -> tuple:
    numbers = [round(float(v), 3) for v in (*header.ImageOrientationPatient, *header.PixelSpacing)]
    return (int(header.Rows), int(header.Columns), *numbers)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{reason}: {n}" for reason, n in counts.items())
