"""CT series and readers' XML of a made chest, in LIDC's form: what is where is known exactly."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

RATED = {"subtlety": 4, "internalStructure": 1, "calcification": 6, "sphericity": 4, "margin": 4}
RATED |= {"lobulation": 1, "spiculation": 1, "texture": 5}
Change = Callable[[Dataset, int], object]
Scene = Callable[[np.ndarray], np.ndarray]
"""Patient coordinates (…, 3), mm → HU."""


def balls(*balls: tuple[Sequence[float], float, float], background: float = -850.0) -> Scene:
    """Balls (centre, radius in mm, HU) in lung, with an edge 1 mm wide."""

    def scene(points: np.ndarray) -> np.ndarray:
        values = np.full(points.shape[:-1], background)
        for centre, radius, hu in balls:
            inside = np.clip(radius - np.linalg.norm(points - np.array(centre), axis=-1) + 0.5, 0, 1)
            values = np.maximum(values, background + inside * (hu - background))
        return values

    return scene


@dataclass
class Scan:
    """A series as it lies on disk, with what tests need to know of it."""

    uid: str
    spacing: tuple[float, float] = (0.75, 0.75)
    step: float = 2.5
    n: int = 17
    shape: tuple[int, int] = (80, 80)
    first: tuple[float, float, float] = (-30.0, -30.0, -20.0)
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    patient: str = "LIDC-IDRI-0001"
    skip: frozenset[int] = field(default_factory=frozenset)

    def sop(self, k: int) -> str:
        return f"{self.uid}.{k + 1}"

    def position(self, k: int) -> np.ndarray:
        return np.array(self.first) + k * self.step * np.array([0, 0, 1])

    def points(self, k: int) -> np.ndarray:
        """Patient coordinates of the pixels of a slice (H, W, 3)."""
        along, down = np.array(self.orientation, float).reshape(2, 3)
        y, x = np.indices(self.shape)
        return self.position(k) + x[..., None] * self.spacing[1] * along + y[..., None] * self.spacing[0] * down

    def write(self, folder: Path, scene: Scene, *, change: Change | None = None) -> "Scan":
        """One file for each slice; the order of the names is not that of the slices."""
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(self.n):
            if k in self.skip:
                continue
            ds = header(self.sop(k))
            ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = self.patient, "1.2.9", self.uid
            ds.ImagePositionPatient = self.position(k).tolist()
            ds.ImageOrientationPatient, ds.PixelSpacing = list(self.orientation), list(self.spacing)
            set_pixels(ds, scene(self.points(k)))
            if change is not None:
                change(ds, k)
            ds.save_as(folder / f"1-{(k * 7) % 97:03d}.dcm", enforce_file_format=True)
        return self


def header(sop_uid: str) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, sop_uid, "CT"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1000
    return ds


def set_pixels(ds: Dataset, hu: np.ndarray) -> None:
    ds.Rows, ds.Columns = hu.shape
    stored = (hu - float(ds.RescaleIntercept)) / float(ds.RescaleSlope)
    ds.PixelData = np.rint(stored).astype("<i2").tobytes()


def disc(cx: int, cy: int, radius: float) -> set[tuple[int, int]]:
    """Pixels (x, y) within a radius, in pixels, of a pixel."""
    reach = range(-int(radius) - 1, int(radius) + 2)
    return {(cx + x, cy + y) for x in reach for y in reach if x * x + y * y <= radius * radius}


def edge(pixels: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """LIDC's edge map of a round set of pixels: the ring just outside it, in order, closed."""
    ring = {(x + dx, y + dy) for x, y in pixels for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))} - pixels
    cx, cy = np.mean(list(pixels), axis=0)
    ordered = sorted(ring, key=lambda p: np.arctan2(p[1] - cy, p[0] - cx))
    return [*ordered, ordered[0]]


Roi = tuple[str, float, list[tuple[int, int]], bool]


def roi(scan: Scan, k: int, pixels: set[tuple[int, int]], *, inclusion: bool = True) -> Roi:
    """An outline on slice k."""
    return scan.sop(k), float(scan.position(k)[2]), edge(pixels), inclusion


@dataclass
class Mark:
    """What one reader says of one nodule. ``malignancy`` ``None``: no characteristics (under 3 mm)."""

    name: str
    rois: list[Roi]
    malignancy: int | None = 3
    changed: dict[str, object] = field(default_factory=dict)


def write_xml(
    path: Path, series_uid: str, sessions: Iterable[Sequence[Mark]], *, root: str = "LidcReadMessage"
) -> Path:
    """The official form, namespace included."""
    body = "".join(
        f"<readingSession><annotationVersion>3.12</annotationVersion>"
        f"<servicingRadiologistID>anonymous</servicingRadiologistID>"
        f"{''.join(map(_mark, marks))}</readingSession>"
        for marks in sessions
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<LidcReadMessage uid="1.3" xmlns="http://www.nih.gov">'
        f"<ResponseHeader><Version>1.7</Version><SeriesInstanceUid>{series_uid}</SeriesInstanceUid>"
        f"<StudyInstanceUID>1.2.9</StudyInstanceUID></ResponseHeader>{body}</LidcReadMessage>"
    )
    return path


def _mark(mark: Mark) -> str:
    told = ""
    if mark.malignancy is not None:
        ratings = {**RATED, "malignancy": mark.malignancy, **mark.changed}
        cells = "".join(f"<{name}>{value}</{name}>" for name, value in ratings.items())
        told = f"<characteristics>{cells}</characteristics>"
    rois = "".join(
        f"<roi><imageZposition>{z:.6f} </imageZposition><imageSOP_UID>{uid}</imageSOP_UID>"
        f"<inclusion>{'TRUE' if inclusion else 'FALSE'}</inclusion>"
        + "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
        + "</roi>"
        for uid, z, points, inclusion in mark.rois
    )
    return f"<unblindedReadNodule><noduleID>{escape(mark.name)}</noduleID>{told}{rois}</unblindedReadNodule>"


NON_NODULE = (
    "<nonNodule><nonNoduleID>9</nonNoduleID><imageZposition>0</imageZposition><imageSOP_UID>1</imageSOP_UID>"
    "<locus><xCoord>1</xCoord><yCoord>1</yCoord></locus></nonNodule>"
)
