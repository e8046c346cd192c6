"""CT volumes: DICOM series and NIfTI files as Hounsfield units, with the place of their voxels in the patient.

Voxels are indexed as boxes in manifests are: column, row and slice (from inferior to superior) of a DICOM series; a
NIfTI file is turned so that its axes grow towards the patient's left, back and head. An affine matrix takes an index to
millimetres towards the patient's right, front and head (RAS).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from vivid_monai.images.dicom import read_values
from vivid_monai.images.dicom_file import dcmread
from vivid_monai.images.nifti import open_nifti, require_few
from vivid_monai.images.read import ImageError, readable, whole_labels

AIR = -1024.0
"""HU of air, of padding (values below, and PixelPaddingValue), and of what lies outside the scan."""

_NAMES = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")
_GEOMETRY = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2, "Rows": 0, "Columns": 0}
"""Tag → how many numbers; 0: one, not in a list."""


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
        shape: rows and columns of a slice.
        spacing: distance of rows, distance of columns, mm (DICOM's PixelSpacing).
        along_row: unit vector in which the column index x grows.
        down: unit vector in which the row index y grows.
        left_out: why slices of the series are not among ``slices`` → how many.
    """

    patient_id: str
    study_uid: str
    series_uids: frozenset[str]
    slices: tuple[Slice, ...]
    shape: tuple[int, int]
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
    def step(self) -> float | None:
        """Median distance of neighbouring slices, mm, those at the same place once; ``None`` for a single one."""
        steps = np.diff(self.heights)
        return float(np.median(steps[steps > 1e-3])) if (steps > 1e-3).any() else None

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

    @property
    def affine(self) -> np.ndarray:
        """float64 (4, 4): index (column, row, slice) → RAS, mm; of a `regular` series."""
        first, last = self.slices[0].position, self.slices[-1].position
        rows, columns = self.spacing
        affine = np.eye(4)
        steps = (columns * self.along_row, rows * self.down, (last - first) / max(1, len(self.slices) - 1))
        affine[:3, :3], affine[:3, 3] = np.stack(steps, axis=1), first
        return np.diag([-1.0, -1, 1, 1]) @ affine

    @cached_property
    def values(self) -> Callable[[int], np.ndarray]:
        """Index → the slice in HU, float32 (H, W), at least `AIR`. Damage raises what `read_values` raises.

        Neighbouring nodules share slices: the last 32 (of 512 × 512 pixels: 32 MB) are kept, with the series.
        """
        return lru_cache(maxsize=32)(lambda place: np.maximum(_padded(self.slices[place]), np.float32(AIR)))


def _padded(one: Slice) -> np.ndarray:
    """A slice in HU, float32 (H, W), with air for padding."""
    values, padding = read_values(Path(one.path))
    return np.where(padding, AIR, values).astype(np.float32)


def read_series(paths: Sequence[str]) -> Series:
    """Read the headers of a series and sort its slices.

    Slices that differ from most in size, spacing or orientation, lack their geometry, cannot be read, or are there
    twice are left out and counted.

    Raises:
        SeriesError: no slice is left, they are not axial, or the files name two patients.
    """
    left_out: Counter[str] = Counter()
    headers: dict[str, tuple[str, pydicom.Dataset]] = {}
    for path in paths:
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=[*_NAMES, *_GEOMETRY])
        except Exception:  # what a damaged header makes pydicom raise is not told anywhere
            left_out["unreadable header"] += 1
            continue
        if not _is_complete(header):
            left_out["no position, orientation, spacing or size"] += 1
        elif _uid(header) in headers:
            left_out["the same slice again"] += 1
        else:
            headers[_uid(header)] = (path, header)
    kinds = Counter(_kind(header) for _, header in headers.values())
    if not kinds:
        why = ", ".join(f"{reason}: {n}" for reason, n in left_out.items())
        raise SeriesError(f"none of its {len(paths)} files is a slice with a geometry ({why})")
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
        series_uids=frozenset(str(h.get("SeriesInstanceUID")) for _, h in kept.values()),
        slices=tuple(slices),
        shape=(int(first.Rows), int(first.Columns)),
        spacing=(rows, columns),
        along_row=along_row,
        down=down,
        left_out=left_out,
    )


def _is_complete(header: pydicom.Dataset) -> bool:
    try:
        known = all(np.array(header.get(tag), float).shape == ((n,) if n else ()) for tag, n in _GEOMETRY.items())
    except (TypeError, ValueError):
        return False
    return bool(_uid(header)) and known and min(header.PixelSpacing) > 0


def _uid(header: pydicom.Dataset) -> str:
    """SOP instance UID; that of the file's own header where a tool has emptied the other."""
    return str(header.get("SOPInstanceUID") or header.file_meta.get("MediaStorageSOPInstanceUID") or "")


def _up(along_row: np.ndarray, down: np.ndarray) -> np.ndarray:
    normal = np.cross(along_row, down)
    return normal * np.sign(normal[2])


def _kind(header: pydicom.Dataset) -> tuple:
    numbers = [round(float(v), 3) for v in (*header.ImageOrientationPatient, *header.PixelSpacing)]
    return (int(header.Rows), int(header.Columns), *numbers)


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a CT volume.

    Args:
        path: a NIfTI file, or a folder that holds one DICOM series and no other.

    Returns:
        float32 (X, Y, Z) in HU, at least `AIR`; affine float64 (4, 4).

    Raises:
        ImageError: the file cannot be read, holds no volume, or what it holds cannot be Hounsfield units.
    """
    path = Path(path)
    with readable(path, "volume"):
        if path.is_dir():
            series = _one_series(path)
            values, affine = np.stack([_padded(one).T for one in series.slices], axis=2), series.affine
        else:
            image = open_nifti(path, axes=3)
            place = turned(image.shape[:3], image.affine, "LPS")
            stored = np.asanyarray(image.dataobj, np.float32).reshape(image.shape[:3])
            values, affine = apply_orientation(stored, place.turn), image.affine @ np.linalg.inv(place.matrix)
    if reason := implausible(values):
        raise ImageError(f"{path}: {reason}")
    return np.maximum(values, np.float32(AIR)), affine


@lru_cache(maxsize=4096)
def volume_geometry(path: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape (X, Y, Z) and affine of :func:`read_volume`, from headers alone; raises as it does."""
    with readable(path, "volume"):
        if Path(path).is_dir():
            series = _one_series(Path(path))
            rows, columns = series.shape
            return (columns, rows, len(series.slices)), series.affine
        image = open_nifti(Path(path), axes=3)
        place = turned(image.shape[:3], image.affine, "LPS")
        return place.shape, image.affine @ np.linalg.inv(place.matrix)


class Turned(NamedTuple):
    """A volume whose axes are put into another orientation."""

    turn: np.ndarray  # for nibabel's apply_orientation
    shape: tuple[int, ...]
    spacing: tuple[float, ...]  # mm
    matrix: np.ndarray  # float64 (4, 4), index of the volume → that of the turned one


def turned(spatial: Sequence[int], affine: np.ndarray, orientation: str) -> Turned:
    """How a volume is put into the orientation that its axes are closest to.

    Args:
        spatial: shape (X, Y, Z).
        affine: (4, 4), index → RAS, mm.
        orientation: where the index of each new axis grows to, as ``"SPL"``.
    """
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    order = np.argsort(turn[:, 0])
    spacing = voxel_sizes(affine)
    return Turned(
        turn,
        tuple(int(spatial[axis]) for axis in order),
        tuple(float(spacing[axis]) for axis in order),
        np.linalg.inv(inv_ornt_aff(turn, spatial)),
    )


def read_labels(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a mask of a volume from a NIfTI file.

    Returns:
        uint8 (X, Y, Z) and affine.

    Raises:
        ImageError: the file cannot be read, or holds values other than whole numbers from 0 to 255.
    """
    with readable(path, "mask"):
        image = open_nifti(Path(path), axes=3)
        return whole_labels(np.asanyarray(image.dataobj).reshape(image.shape[:3])), image.affine


def implausible(values: np.ndarray) -> str | None:
    """Why an array cannot be Hounsfield units of a CT of a patient; None: nothing speaks against it.

    A header does not tell whether slope and intercept were applied. Every patient has air (or lung) and soft tissue; a
    constant below air is padding, many different values there are an intercept that was subtracted twice.
    """
    if not np.isfinite(values).all():
        return "holds values that are not finite (NaN or infinity)"
    n, lowest = values.size, values.min()
    deep = np.count_nonzero((values < -1300) & (values > lowest)) / n
    air = np.count_nonzero((values >= -1300) & (values < -600)) / n
    tissue = np.count_nonzero((values > -200) & (values < 200)) / n
    if deep > 0.01:
        why = f"{deep:.0%} of its voxels are below −1300; slope and intercept seem to be applied twice"
    elif air < 0.001:
        why = "it has no air near −1000; slope and intercept seem not to be applied, or it is no CT"
    elif tissue < 0.01:
        why = "it has no soft tissue near 0; slope and intercept seem to be applied twice, or it is no patient"
    else:
        return None
    return f"cannot be Hounsfield units: {why} (values {lowest:g} to {values.max():g}); store it in HU"


def _one_series(folder: Path) -> Series:
    paths = sorted(str(path) for path in folder.iterdir() if path.is_file())
    if not paths:
        raise SeriesError("the folder is empty")
    series = read_series(paths)
    if len(series.series_uids) > 1:
        raise SeriesError(f"the folder holds {len(series.series_uids)} series; a folder for each is needed")
    if not series.regular:
        raise SeriesError("its slices are not equally far apart; some are missing or there twice")
    require_few((*series.shape, len(series.slices)))
    return series
