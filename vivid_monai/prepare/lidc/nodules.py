"""Nodules: readings grouped by overlap, with ratings, position and size, and their table nodules.csv."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy.sparse.csgraph import connected_components

from vivid_monai.errors import VividError
from vivid_monai.images.volume import Series
from vivid_monai.prepare.lidc.reads import RATINGS, Contour, Reading, ScanReads
from vivid_monai.storage.files import whole_file

Region = dict[str, np.ndarray]
"""SOP instance UID → pixels of the nodule there, int64 codes, sorted, as `decode` reads them."""

_ROW = 1 << 32


def enclosed(points: np.ndarray) -> np.ndarray:
    """The pixels inside an edge map (``points``: int (P, 2), x and y), int64 codes, sorted.

    LIDC's edge map is the outermost ring of pixels just outside the nodule, so its own pixels (and those on the
    straight lines between them) are not inside. An outline so small that nothing is left stands for its own pixels.
    """
    corner = points.min(axis=0)
    width, height = (points.max(axis=0) - corner + 1).tolist()
    outline = [(x, y) for x, y in (points - corner).tolist()]
    filled, ring = Image.new("1", (width, height)), Image.new("1", (width, height))
    if len(outline) > 2:
        ImageDraw.Draw(filled).polygon(outline, fill=1, outline=1)
    ImageDraw.Draw(ring).line([*outline, outline[0]], fill=1)
    ImageDraw.Draw(ring).point(outline, fill=1)
    inside = np.array(filled) & ~np.array(ring)
    y, x = np.nonzero(inside if inside.any() else np.array(ring))
    return np.sort((y + corner[1]) * _ROW + x + corner[0])


def region(contours: Iterable[Contour]) -> Region:
    """What a reading's outlines enclose, without its holes; slices where nothing is left are not in it."""
    filled: Region = {}
    for contour in sorted(contours, key=lambda c: not c.inclusion):  # holes last
        pixels, there = enclosed(contour.points), filled.get(contour.sop_uid, np.empty(0, np.int64))
        filled[contour.sop_uid] = (np.union1d if contour.inclusion else np.setdiff1d)(there, pixels)
    return {uid: pixels for uid, pixels in filled.items() if len(pixels)}


def decode(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y, int64, of pixel codes."""
    return pixels % _ROW, pixels // _ROW


def overlap(first: Region, second: Region) -> float:
    """Intersection over union of the pixels of all slices, in [0, 1]."""
    shared = sum(len(np.intersect1d(first[uid], second[uid], assume_unique=True)) for uid in first.keys() & second)
    return shared / (size(first) + size(second) - shared) if shared else 0.0


def size(pixels: Region) -> int:
    """Pixels on all slices."""
    return sum(map(len, pixels.values()))


MAX_READINGS = 4
"""Four radiologists read each scan."""


def cluster(regions: Sequence[Region], *, limit: int = MAX_READINGS) -> list[list[int]]:
    """Group the readings of one scan into nodules.

    Two readings are linked where their regions share a pixel of a slice; linked readings, and those linked to them, are
    one nodule (single linkage). A group of more than ``limit`` is taken apart by leaving out its weakest link (least
    intersection over union of the pixels), then the next weakest, until each piece has at most ``limit`` readings.
    The rule needs neither pixel spacing nor who read, so that outlines alone fix a nodule's identity for good.
    Returns groups of positions in ``regions``, each sorted, in the order of their first positions.
    """
    strength = np.zeros((len(regions), len(regions)))
    for i, first in enumerate(regions):
        for j in range(i):
            strength[i, j] = strength[j, i] = overlap(first, regions[j])
    done: list[list[int]] = []
    open_groups = [(np.arange(len(regions)), 0.0)]
    while open_groups:
        members, threshold = open_groups.pop()
        links = strength[np.ix_(members, members)]
        count, label = connected_components(links > threshold, directed=False)
        for piece in range(count):
            group = members[label == piece]
            if len(group) <= limit:
                done.append(group.tolist())
            else:
                inner = strength[np.ix_(group, group)]
                open_groups.append((group, inner[inner > threshold].min()))
    return sorted(done)


Aggregate = Literal["mean", "median"]


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """A row of nodules.csv. What needs the CT series is ``None`` where there was none.

    Attributes:
        series_uid, study_uid, patient_id: of the scan; the XML names no patient.
        number: of the nodule in its scan, from 1, by z, then y, then x.
        readings: keys of its readings ("reader/noduleID").
        ratings: characteristic → category of each reading, in the order of ``readings``.
        sop_uid: the slice on which the nodule is largest: the readings' areas there sum up to the most.
        x, y: centre, column and row in pixels from 0: the mean over readings of the mean of their pixels.
        z_mm: the same of imageZposition.
        area_px: mean over readings of the area on the slice ``sop_uid``, pixels (0 where a reading is not on it).
        voxels: mean over readings of the number of pixels on all slices.
        slice_index: of ``sop_uid`` in the series, 0 = most inferior.
        z: centre as a slice index, between slices where it lies between them.
        x_mm, y_mm: centre in DICOM patient coordinates (to the left, to the back), mm.
        volume_mm3: voxels × pixel area × median distance of the slices.
        diameter_mm: of the sphere with that volume.
    """

    series_uid: str
    study_uid: str
    patient_id: str | None
    number: int
    readings: tuple[str, ...]
    ratings: Mapping[str, tuple[int | None, ...]]
    sop_uid: str
    x: float
    y: float
    z_mm: float
    area_px: float
    voxels: float
    slice_index: int | None = None
    z: float | None = None
    x_mm: float | None = None
    y_mm: float | None = None
    volume_mm3: float | None = None
    diameter_mm: float | None = None

    @property
    def id(self) -> str:
        """Unique in all of LIDC-IDRI: the series and the number."""
        return f"{self.series_uid}_{self.number:02d}"

    @property
    def n_readers(self) -> int:
        """Readers (not readings) who marked it."""
        return len({key.partition("/")[0] for key in self.readings})

    def by_reader(self, rating: str) -> list[float]:
        """The rating of each reader that gave one; of one who marked the nodule twice, the mean."""
        given: dict[str, list[int]] = {}
        for key, value in zip(self.readings, self.ratings[rating], strict=True):
            if value is not None:
                given.setdefault(key.partition("/")[0], []).append(value)
        return [float(np.mean(values)) for values in given.values()]

    def average(self, rating: str, how: Aggregate = "mean") -> float | None:
        """Mean or median over readers; ``None`` where none rated it."""
        values = self.by_reader(rating)
        return float(np.mean(values) if how == "mean" else np.median(values)) if values else None

    def measured(self, series: Series) -> "Nodule":
        """With the patient of the series, and in mm where the slice is in it."""
        place = series.index.get(self.sop_uid)
        known = replace(self, patient_id=series.patient_id, study_uid=self.study_uid or series.study_uid)
        if place is None:
            return known
        x_mm, y_mm, _ = series.patient_position(place, self.x, self.y)
        height, width = series.spacing
        volume = None if series.step is None else self.voxels * height * width * series.step
        return replace(
            known,
            slice_index=place,
            z=series.index_at(place, self.x, self.y, self.z_mm),
            x_mm=x_mm,
            y_mm=y_mm,
            volume_mm3=volume,
            diameter_mm=None if volume is None else (6 * volume / np.pi) ** (1 / 3),
        )


def nodules_of(scan: ScanReads) -> list[Nodule]:
    """The nodules of one scan, from its XML alone."""
    filled = [region(reading.contours) for reading in scan.readings]
    found = [
        _describe(scan, [scan.readings[i] for i in group], [filled[i] for i in group])
        for group in cluster(filled)
        if any(filled[i] for i in group)
    ]
    found.sort(key=lambda nodule: (nodule.z_mm, nodule.y, nodule.x, nodule.readings))
    return [replace(nodule, number=number) for number, nodule in enumerate(found, start=1)]


def _describe(scan: ScanReads, readings: Sequence[Reading], filled: Sequence[Region]) -> Nodule:
    heights = {contour.sop_uid: contour.z for reading in readings for contour in reading.contours}
    drawn = [one for one in filled if one]
    x, y, z = np.mean([_centre(one, heights) for one in drawn], axis=0).tolist()
    area = {uid: sum(len(one.get(uid, ())) for one in drawn) for uid in heights}
    # Of equally large slices the one nearest to the centre, then the lower one.
    largest = max(area, key=lambda uid: (area[uid], -round(abs(heights[uid] - z), 3), -heights[uid], uid))
    return Nodule(
        series_uid=scan.series_uid,
        study_uid=scan.study_uid,
        patient_id=None,
        number=0,
        readings=tuple(reading.key for reading in readings),
        ratings={name: tuple(reading.ratings[name] for reading in readings) for name in RATINGS},
        sop_uid=largest,
        x=x,
        y=y,
        z_mm=z,
        area_px=area[largest] / len(drawn),
        voxels=sum(map(size, drawn)) / len(drawn),
    )


def _centre(pixels: Region, heights: Mapping[str, float]) -> np.ndarray:
    x, y = decode(np.concatenate(list(pixels.values())))
    z = np.repeat([heights[uid] for uid in pixels], [len(codes) for codes in pixels.values()])
    return np.array([x.mean(), y.mean(), z.mean()])


_WORDS = ("series_uid", "study_uid", "patient_id", "sop_uid")
_WHOLE = ("number", "slice_index")
_PLAIN = [field.name for field in fields(Nodule) if field.name not in ("readings", "ratings")]
_SUMMARIES: dict[str, tuple[str, Aggregate]] = {"malignancy_median": ("malignancy", "median")}
_SUMMARIES |= {f"{name}_mean": (name, "mean") for name in RATINGS}
COLUMNS = ("id", *_PLAIN[:4], "n_readers", "readings", *_PLAIN[4:], *RATINGS, *_SUMMARIES)
"""In this order; docs/lidc.md says what each is."""


def write_table(nodules: Iterable[Nodule], path: Path) -> None:
    """Write the table. Numbers have three decimals, what is unknown is blank, lists have ``|``."""
    with whole_file(path) as part:
        pd.DataFrame(map(_row, nodules), columns=COLUMNS).to_csv(part, index=False, lineterminator="\n")


def _row(nodule: Nodule) -> dict[str, str]:
    cells = {name: _text(getattr(nodule, name)) for name in _PLAIN}
    cells |= {"id": nodule.id, "n_readers": str(nodule.n_readers), "readings": "|".join(nodule.readings)}
    cells |= {name: "|".join(map(_text, nodule.ratings[name])) for name in RATINGS}
    return cells | {name: _text(nodule.average(*summary)) for name, summary in _SUMMARIES.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def read_table(path: Path) -> list[Nodule]:
    """Read a table that `write_table` wrote.

    Raises VividError: unreadable, columns missing, a cell that is none of its kind, a nodule or a reading twice, or an
    id, reader count, mean or median that does not follow from the readings of its row.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeError, csv.Error) as error:
        raise VividError(f"{path}: the table of nodules cannot be read: {error}") from error
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise VividError(f"{path}: not a table of nodules, it has no column {', '.join(missing)}")
    nodules: list[Nodule] = []
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(rows, start=2):
        try:
            nodule = _parse(row)
        except (ValueError, TypeError) as error:
            raise VividError(f"{path}, row {number}: {error}") from error
        expected = _row(nodule)
        for name in ("id", "n_readers", *_SUMMARIES):
            if row[name] != expected[name]:
                told = f"{name} is {row[name]!r}, but its other cells give {expected[name]!r}"
                raise VividError(f"{path}, row {number}: {told}")
        keys = {(nodule.id,), *((nodule.series_uid, key) for key in nodule.readings)}
        if seen & keys:
            raise VividError(f"{path}, row {number}: {nodule.id} or one of its readings is in an earlier row")
        seen |= keys
        nodules.append(nodule)
    return nodules


def _parse(row: dict[str, str]) -> Nodule:
    readings = tuple(row["readings"].split("|"))
    ratings = {}
    for name, highest in RATINGS.items():
        ratings[name] = tuple(int(cell) if cell else None for cell in row[name].split("|"))
        if len(ratings[name]) != len(readings):
            raise ValueError(f"{name} has {len(ratings[name])} ratings for {len(readings)} readings")
        if any(value is not None and not 1 <= value <= highest for value in ratings[name]):
            raise ValueError(f"{name} holds {row[name]!r}; its categories are 1 to {highest}")
    if not all(row[name] for name in ("series_uid", "sop_uid", "readings")):
        raise ValueError("series_uid, sop_uid or readings is blank")
    optional = {field.name for field in fields(Nodule) if field.default is None} | {"patient_id"}
    values: dict[str, Any] = {}
    for name in _PLAIN:
        kind = str if name in _WORDS else int if name in _WHOLE else float
        values[name] = None if not row[name] and name in optional else kind(row[name])
    return Nodule(**values, readings=readings, ratings=ratings)
