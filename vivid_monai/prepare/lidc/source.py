"""Adapter for LIDC-IDRI: the nodules of its scans as crops of three slices, one row each."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
from scipy.ndimage import map_coordinates

from vivid_monai.data.columns import FINDING
from vivid_monai.errors import VividError
from vivid_monai.images.volume import AIR, Series, SeriesError, read_series
from vivid_monai.logs import progress
from vivid_monai.prepare.lidc.nodules import Aggregate, Nodule, nodules_of, read_table, write_table
from vivid_monai.prepare.lidc.reads import RATINGS, ReadsError, read_xml
from vivid_monai.prepare.source import KEY, ROW, TABLE, Rows, Source, skip_list
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.states import encode

SPACE, FIELD = "lidc-malignancy", "Malignancy"
NODULES = "nodules.csv"
Skipped = list[tuple[str, None, str, str, str]]
"""Files and scans for skipped.csv: file, no row, what it is about (such as the series), reason, detail."""


def read_scans(files: Iterable[Path], skips: Skipped) -> tuple[list[Nodule], Counter[str]]:
    """The nodules of all scans, from XML alone, sorted by scan; and what was counted on the way.

    One file is in memory at a time. A scan's readings may be given twice where both files say the same; where two
    differ, nobody knows which is right, and the scan is left out.
    """
    counts: Counter[str] = Counter()
    found: dict[str, tuple[int, Path, list[Nodule]]] = {}
    conflicts: dict[str, str] = {}
    paths = list(files)
    for path in progress(paths, desc="readings", unit="file", leave=False, disable=len(paths) < 50):
        try:
            scan = read_xml(path)
        except ReadsError as error:
            skips.append((path.name, None, str(path), error.reason, str(error)))
            continue
        content = hash(scan.content())
        if (earlier := found.get(scan.series_uid)) is not None:
            if earlier[0] == content:
                skips.append((path.name, None, scan.series_uid, "duplicate-xml", f"says what {earlier[1]} says"))
            else:
                conflicts.setdefault(scan.series_uid, f"{earlier[1]} and {path} differ about this scan")
            continue
        nodules = nodules_of(scan)
        found[scan.series_uid] = (content, path, nodules)
        for key in {r.key for r in scan.readings} - {key for nodule in nodules for key in nodule.readings}:
            why = f"the holes of reading {key} leave nothing of it"
            skips.append((path.name, None, scan.series_uid, "empty-reading", why))
        counts["readings"] += len(scan.readings)
        incomplete = sum(None in reading.ratings.values() for reading in scan.readings)
        counts[f"readings without all of the {len(RATINGS)} ratings"] += incomplete
        counts["marks of nodules under 3 mm (no ratings)"] += scan.small
        counts["marks of non-nodules"] += scan.non_nodules
    for uid, detail in conflicts.items():
        skips.append((found[uid][1].name, None, uid, "conflicting-xml", detail))
        del found[uid]
    every = [nodule for uid in sorted(found) for nodule in found[uid][2]]
    return every, counts + Counter({"scans": len(found), "nodules": len(every)})


@dataclass
class Index:
    """Paths only, so that a quarter of a million slices fit.

    ``series``: CT series instance UID → its files, sorted. ``xml``: files that begin like XML. ``other``: kind of file
    that is neither → how many. ``unreadable``: DICOM files whose header is damaged → why.
    """

    series: dict[str, list[str]] = field(default_factory=dict)
    xml: list[Path] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)


def index_files(roots: Iterable[Path], *, dicom: bool = True) -> Index:
    """Look at every file below the folders, once each. ``dicom=False``: only for XML.

    Raises VividError: a root is not a folder.
    """
    paths: dict[str, None] = {}
    for root in roots:
        if not root.is_dir():
            raise VividError(f"{root}: not a folder: give the one that holds LIDC-IDRI's files")
        for folder, inner, names in os.walk(root):
            inner.sort()
            paths.update(dict.fromkeys(os.path.realpath(os.path.join(folder, name)) for name in sorted(names)))
    found = Index()
    for path in progress(paths, desc="looking at files", unit="file", leave=False, disable=len(paths) < 2000):
        try:
            with open(path, "rb") as file:
                head = file.read(132)
        except OSError as error:
            found.unreadable[path] = str(error)
            continue
        if head[128:] == b"DICM":
            if dicom:
                _add_dicom(found, path)
        elif head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"<?xml", b"<Lidc", b"<Idri")):
            found.xml.append(Path(path))
        else:
            found.other["neither DICOM nor XML"] += 1
    return found


def _add_dicom(found: Index, path: str) -> None:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality", "SeriesInstanceUID"])
        modality, uid = str(header.get("Modality", "")), str(header.get("SeriesInstanceUID") or "")
    except Exception as error:  # pydicom does not document what a damaged header raises
        found.unreadable[path] = f"damaged DICOM header: {error or type(error).__name__}"
        return
    if modality == "CT" and uid:
        found.series.setdefault(uid, []).append(path)
    else:
        found.other[f"DICOM, {modality or 'no modality'}"] += 1


MAX_GAP = 5.5
"""mm. The coarsest scans of LIDC-IDRI have a slice every 5 mm; nothing is interpolated over a wider gap."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class CropRule:
    """What is cut: side of the square, its pixels, and distance of the outer slices from the middle one, mm.

    Raises VividError: a number that cannot be meant.
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

    Raises ValueError: no such slice, or a gap above `MAX_GAP`; and whatever pixel data that cannot be decoded raise.
    """
    middle = series.index.get(sop_uid)
    if middle is None:
        raise ValueError(f"the series has no slice {sop_uid}")
    left, back = series.along_row, series.down
    if abs(left[0]) < abs(back[0]):
        left, back = back, left
    left, back = left * np.sign(left[0]), back * np.sign(back[1])  # towards the patient's left and back
    centre = np.array(series.patient_position(middle, x, y))
    offsets = (np.arange(rule.pixels) - (rule.pixels - 1) / 2) * rule.pixel_mm
    plane = centre + (offsets[:, None, None] * left + offsets[None, :, None] * back)  # (X, Y, 3), mm
    step = rule.slice_mm * series.up
    planes = [_between(series, plane - step), _sample(series, middle, plane), _between(series, plane + step)]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([left * rule.pixel_mm, back * rule.pixel_mm, series.up * rule.slice_mm], axis=1)
    affine[:3, 3] = centre + offsets[0] * (left + back) - rule.slice_mm * series.up
    stored = np.clip(np.rint(np.stack(planes, axis=2)), AIR, np.iinfo(np.int16).max).astype(np.int16)
    image = nibabel.Nifti1Image(stored, _LPS_TO_RAS @ affine)
    image.header.set_xyzt_units("mm")
    return image


def _between(series: Series, points: np.ndarray) -> np.ndarray:
    """HU at points (X, Y, 3) of one plane parallel to the slices."""
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
        raise ValueError(f"slices are missing: the next ones are {gap:g} mm apart (at most {MAX_GAP:g})")
    weight = (height - heights[upper - 1]) / gap
    return (1 - weight) * _sample(series, upper - 1, points) + weight * _sample(series, upper, points)


def _sample(series: Series, place: int, points: np.ndarray) -> np.ndarray:
    """A slice at the points, projected along its normal; linear between pixels, air outside."""
    rows, columns = series.spacing
    inside = points - series.slices[place].position
    coordinates = np.stack([inside @ series.down / rows, inside @ series.along_row / columns])
    return map_coordinates(series.values(place), coordinates, output=np.float64, order=1, mode="constant", cval=AIR)


def _crop_path(nodule: Nodule) -> str:
    return f"crops/{nodule.id}.nii"


def _details(nodule: Nodule, how: Aggregate) -> str | None:
    values = {"rating": (nodule.average("malignancy", how), "1"), "diameter": (nodule.diameter_mm, "mm")}
    found = [{"name": name, "value": round(value, 3), "unit": unit} for name, (value, unit) in values.items() if value]
    return json.dumps({FIELD: {"measurements": found}}) if found else None


def read(
    root: Path,
    *,
    out: Path,
    xml: Path | None = None,
    nodules: Path | None = None,
    min_readers: int = 1,
    rating: Aggregate = "mean",
    crops: CropRule | None = None,
) -> Source:
    """Write nodules.csv and crops/*.nii under ``out``; hand over a row for each crop.

    Args:
        root, xml: folders of the CT series and of the XML, where it is not under ``root``.
        nodules: a frozen table, whose nodules are taken as they are; the XML is not read then.
        min_readers: nodules that fewer readers marked get no crop.
        rating: what of the readers' malignancy ratings decides the state.
        crops: what is cut.

    Raises VividError: no CT series, no readings, or a frozen table that is not right.
    """
    if min_readers < 1:
        raise VividError(f"min_readers is {min_readers}: a nodule has at least 1 reader")
    skips: Skipped = []
    index = index_files([root, *([xml] if xml else [])])
    if not index.series:
        raise VividError(f"{root}: no CT series in DICOM here; with the XML alone, --table-only makes the table")
    found, notes = _identities(index, nodules, skips)
    for path, detail in index.unreadable.items():
        skips.append((Path(path).name, None, path, "unreadable-dicom", detail))
    for uid in sorted(index.series.keys() - {nodule.series_uid for nodule in found}):
        why = "a CT series in which no reader rated a nodule, or without XML"
        skips.append((NODULES, None, uid, "no-nodules", why))

    rule = crops or CropRule()
    to_state = load_label_space(SPACE).ratings[FIELD].state
    problems: dict[int, tuple[str, str]] = {}
    measured: list[Nodule] = []
    states: list[int] = []
    irregular = 0
    scans = [(uid, list(group)) for uid, group in groupby(found, key=lambda nodule: nodule.series_uid)]
    for uid, group in progress(scans, desc="scans", unit="scan", leave=False, disable=len(scans) < 5):
        series, missing = _series(uid, index, skips)
        irregular += series is not None and not series.regular
        for nodule in group:
            known = nodule.measured(series) if series is not None else nodule
            value = known.average("malignancy", rating)
            problem = missing or _problem(known, value, min_readers)
            if problem is None and series is not None:
                problem = _write_crop(known, series, rule, out)
            if problem is not None:
                problems[len(measured)] = problem
            measured.append(known)
            states.append(encode(None if value is None else to_state(value)))
    write_table(measured if nodules is None else found, out / NODULES)
    if irregular:
        notes.append(f"{irregular:,} scans have slices that are missing, twice, or not equally far apart.")
    notes.append(
        f"Crops: {rule.crop_mm:g} mm in pixels of {rule.pixel_mm:g} mm, 3 slices {rule.slice_mm:g} mm apart, HU, "
        f"int16, air (-1024) outside the scan. State by the {rating} over readers, at least {min_readers}."
    )
    notes.append(f"{len(skips):,} of the rows read are no nodules but the files and scans that skipped.csv lists.")
    ids = [nodule.id for nodule in measured]
    table = pd.DataFrame(
        {
            TABLE: NODULES,
            ROW: range(2, len(ids) + 2),
            KEY: ids,
            "id": ids,
            "image": [_crop_path(nodule) for nodule in measured],
            "patient_id": [nodule.patient_id or "" for nodule in measured],
            "study_id": [nodule.study_uid or None for nodule in measured],
            "details": [_details(nodule, rating) for nodule in measured],
            "split": None,
            "modality": "CT",
            "anatomy": "lung",
            "dataset": "lidc-idri",
            "labeller": "LIDC-IDRI readers",
            "source": "human",
            "slice": 1,
            "slices": 3,
            "height": rule.pixels,
            "width": rule.pixels,
            FINDING + FIELD: pd.array(states, "int8"),
        }
    )
    rows = Rows(table=table, n_read=len(table) + len(skips), skipped=[skip_list(skips)], notes=notes)
    rows.drop_each(problems)
    return Source(
        dataset="lidc-idri",
        rows=rows,
        label_space=SPACE,
        image_root=out,
        files=[out / NODULES],
        label_policy=(
            f"The {rating} of the readers' malignancy ratings: at most 2 absent (benign), at least 4 present "
            "(malignant), between them uncertain."
        ),
    )


def read_identities(root: Path, *, xml: Path | None = None) -> tuple[list[Nodule], pd.DataFrame, list[str]]:
    """The table without a CT: nodules (nothing in mm but z), the skip list, notes.

    Raises VividError: no readings.
    """
    skips: Skipped = []
    nodules, notes = _identities(index_files([root, *([xml] if xml else [])], dicom=False), None, skips)
    return nodules, skip_list(skips), notes


def _identities(index: Index, frozen: Path | None, skips: Skipped) -> tuple[list[Nodule], list[str]]:
    others = [f"{n:,} other files: {what}." for what, n in sorted(index.other.items())]
    if frozen is not None:
        nodules = read_table(frozen)
        return nodules, [f"Identities of {len(nodules):,} nodules were taken from {frozen.name}.", *others]
    nodules, counts = read_scans(index.xml, skips)
    if not nodules:
        first = f"; the first was skipped: {skips[0][-1]}" if skips else ""
        raise VividError(f"no rated nodule in {len(index.xml)} XML files{first}: give the readers' XML with --xml DIR")
    return nodules, [f"XML: {n:,} {what}." for what, n in counts.items()] + others


def _series(uid: str, index: Index, skips: Skipped) -> tuple[Series | None, tuple[str, str] | None]:
    """The CT series of a scan, or why there is none."""
    if uid not in index.series:
        return None, ("no-dicom", "its CT series is not there")
    try:
        series = read_series(index.series[uid])
    except SeriesError as error:
        return None, ("unusable-series", str(error))
    for reason, n in series.left_out.items():
        skips.append((NODULES, None, uid, "left-out-slices", f"{n} of {len(index.series[uid])} files: {reason}"))
    return series, None


def _problem(nodule: Nodule, malignancy: float | None, min_readers: int) -> tuple[str, str] | None:
    """Why a nodule of a series gets no crop."""
    if malignancy is None:
        return "no-rating", "no reader rated its malignancy"
    if nodule.n_readers < min_readers:
        return "few-readers", f"{nodule.n_readers} of at least {min_readers} readers"
    if not nodule.patient_id:
        return "no-patient", "the DICOM files name no patient: no split can be drawn"
    return None


def _write_crop(nodule: Nodule, series: Series, rule: CropRule, out: Path) -> tuple[str, str] | None:
    try:
        image = cut(series, nodule.sop_uid, nodule.x, nodule.y, rule)
    except Exception as error:  # decoders raise whatever they like on damaged files
        reason = "unknown-slice" if nodule.sop_uid not in series.index else "no-crop"
        return reason, str(error) or type(error).__name__
    with whole_file(out / _crop_path(nodule)) as part:
        part.write_bytes(image.to_bytes())
    return None
