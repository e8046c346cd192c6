"""LIDC-IDRI into crops and rows of the manifest: one nodule, one row."""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydicom
from tqdm import tqdm

from vivid_monai.data.columns import FINDING
from vivid_monai.errors import VividError
from vivid_monai.images.volume import Series, SeriesError, read_series
from vivid_monai.prepare.image_files import drop_each
from vivid_monai.prepare.lidc.crop import CropRule, cut
from vivid_monai.prepare.lidc.nodules import Aggregate, Nodule, nodules_of
from vivid_monai.prepare.lidc.reads import RATINGS, ReadsError, ScanReads, read_xml
from vivid_monai.prepare.source import KEY, ROW, TABLE, Rows, Source, skip_list
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.states import encode


@dataclass
class SkipList:
    """What goes to skipped.csv beside the rows: files and scans."""

    entries: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, file: str, key: str, reason: str, detail: str) -> None:
        """One more; ``key``: what it is about, such as the series."""
        self.entries.append((file, key, reason, detail))

    def table(self) -> pa.Table:
        """SKIPPED_SCHEMA; the rows have no numbers."""
        files, keys, reasons, details = zip(*self.entries, strict=True) if self.entries else ((), (), (), ())
        return skip_list(files, [None] * len(files), keys, reasons, details)


def read_scans(files: Iterable[Path], skips: SkipList) -> tuple[list[Nodule], Counter[str]]:
    """The nodules of all scans, from XML alone, sorted by scan; and what was counted on the way.

    One file is in memory at a time. A scan's readings may be given twice where both files say the same; where two
    differ, nobody knows which is right, and the scan is left out.
    """
    counts: Counter[str] = Counter()
    found: dict[str, tuple[int, Path, list[Nodule]]] = {}
    conflicts: dict[str, str] = {}
    paths = list(files)
    for path in tqdm(paths, desc="readings", unit="file", leave=False, disable=len(paths) < 50):
        try:
            scan = read_xml(path)
        except ReadsError as error:
            skips.add(path.name, str(path), error.reason, str(error))
            continue
        content = hash(scan.content())
        if (earlier := found.get(scan.series_uid)) is not None:
            if earlier[0] == content:
                skips.add(path.name, scan.series_uid, "duplicate-xml", f"says what {earlier[1]} says")
            else:
                conflicts.setdefault(scan.series_uid, f"{earlier[1]} and {path} differ about this scan")
            continue
        nodules = nodules_of(scan)
        found[scan.series_uid] = (content, path, nodules)
        for key in {r.key for r in scan.readings} - {key for nodule in nodules for key in nodule.readings}:
            skips.add(path.name, scan.series_uid, "empty-reading", f"the holes of reading {key} leave nothing of it")
        counts.update(_counts(scan))
    for uid, detail in conflicts.items():
        skips.add(found[uid][1].name, uid, "conflicting-xml", detail)
        del found[uid]
    every = [nodule for uid in sorted(found) for nodule in found[uid][2]]
    return every, counts + Counter({"scans": len(found), "nodules": len(every)})


def _counts(scan: ScanReads) -> dict[str, int]:
    incomplete = sum(None in reading.ratings.values() for reading in scan.readings)
    return {
        "readings": len(scan.readings),
        "readings without all of the " + str(len(RATINGS)) + " ratings": incomplete,
        "marks of nodules under 3 mm (no ratings)": scan.small,
        "marks of non-nodules": scan.non_nodules,
    }


@dataclass
class Index:
    """Paths only, so that a quarter of a million slices fit.

    Attributes:
        series: CT series instance UID → its files, sorted.
        xml: files that begin like XML.
        other: kind of file that is neither → how many.
        unreadable: DICOM files whose header is damaged → why.
    """

    series: dict[str, list[str]] = field(default_factory=dict)
    xml: list[Path] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)


def index_files(roots: Iterable[Path], *, dicom: bool = True) -> Index:
    """Look at every file below the folders, once each. ``dicom=False``: only for XML.

    Raises:
        VividError: a root is not a folder.
    """
    paths: dict[str, None] = {}
    for root in roots:
        if not root.is_dir():
            raise VividError(f"{root}: not a folder: give the one that holds LIDC-IDRI's files")
        for folder, inner, names in os.walk(root):
            inner.sort()
            paths.update(dict.fromkeys(os.path.realpath(os.path.join(folder, name)) for name in sorted(names)))
    found = Index()
    for path in tqdm(paths, desc="looking at files", unit="file", leave=False, disable=len(paths) < 2000):
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
    except Exception as error:  # what a damaged header makes pydicom raise is not told anywhere
        found.unreadable[path] = f"damaged DICOM header: {error or type(error).__name__}"
        return
    if modality == "CT" and uid:
        found.series.setdefault(uid, []).append(path)
    else:
        found.other[f"DICOM, {modality or 'no modality'}"] += 1


_WORDS = ("series_uid", "study_uid", "patient_id", "sop_uid")
_WHOLE = ("number", "slice_index")
_PLAIN = [field.name for field in fields(Nodule) if field.name not in ("readings", "ratings")]
_SUMMARIES = {"malignancy_median": lambda nodule: nodule.median("malignancy")} | {
    f"{name}_mean": (lambda nodule, name=name: nodule.mean(name)) for name in RATINGS
}
COLUMNS = ("id", *_PLAIN[:4], "n_readers", "readings", *_PLAIN[4:], *RATINGS, *_SUMMARIES)
"""In this order; docs/lidc.md tells what each is."""


def write_table(nodules: Iterable[Nodule], path: Path) -> None:
    """Write the table, whole or not at all. Numbers have three decimals, what is unknown is blank, lists have ``|``."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_row(nodule) for nodule in nodules)


def _row(nodule: Nodule) -> list[str]:
    cells = {name: _text(getattr(nodule, name)) for name in _PLAIN}
    cells |= {"id": nodule.id, "n_readers": str(nodule.n_readers), "readings": "|".join(nodule.readings)}
    cells |= {name: "|".join(map(_text, nodule.ratings[name])) for name in RATINGS}
    cells |= {name: _text(summary(nodule)) for name, summary in _SUMMARIES.items()}
    return [cells[name] for name in COLUMNS]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def read_table(path: Path) -> list[Nodule]:
    """Read a table that `write_table` wrote.

    Raises:
        VividError: unreadable, columns missing, a cell that is none of its kind, a nodule or a reading twice, or an id,
            reader count, mean or median that does not follow from the readings of its row.
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
        told = dict(zip(COLUMNS, _row(nodule), strict=True))
        for name in ("id", "n_readers", *_SUMMARIES):
            if row[name] != told[name]:
                raise VividError(
                    f"{path}, row {number}: {name} is {row[name]!r}, but its other cells give {told[name]!r}"
                )
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
        kind: Callable[[str], Any] = str if name in _WORDS else int if name in _WHOLE else float
        values[name] = None if not row[name] and name in optional else kind(row[name])
    return Nodule(**values, readings=readings, ratings=ratings)


SPACE, FIELD = "lidc-malignancy", "Malignancy"
NODULES = "nodules.csv"


def crop_path(nodule: Nodule) -> str:
    """Where a nodule's crop lies in the output folder."""
    return f"crops/{nodule.id}.nii"


def manifest_rows(
    nodules: Sequence[Nodule],
    states: Sequence[int],
    problems: Sequence[tuple[str, str] | None],
    listed: pa.Table,
    notes: Sequence[str],
    rule: CropRule,
    rating: Aggregate,
) -> Rows:
    """One row for each nodule; those with a problem (reason, detail) are dropped and listed.

    Args:
        listed: files and scans that were skipped, in SKIPPED_SCHEMA; they count as read, too.
    """
    n = len(nodules)
    columns: dict[str, list[str | None]] = {
        TABLE: [NODULES] * n,
        KEY: [nodule.id for nodule in nodules],
        "id": [nodule.id for nodule in nodules],
        "image": [crop_path(nodule) for nodule in nodules],
        "patient_id": [nodule.patient_id or "" for nodule in nodules],
        "study_id": [nodule.study_uid or None for nodule in nodules],
        "details": [_details(nodule, rating) for nodule in nodules],
    }
    words = {"split": None, "view": None, "sex": None, "modality": "CT", "anatomy": "lung", "dataset": "lidc-idri"}
    words |= {"labeller": "LIDC-IDRI readers", "source": "human", "labeller_version": None}
    whole = {"slice": 1, "slices": 3, "height": rule.pixels, "width": rule.pixels}
    table = pa.table(
        {name: pa.array(values, pa.string()) for name, values in columns.items()}
        | {name: pa.array([word] * n, pa.string()) for name, word in words.items()}
        | {name: pa.array([value] * n, pa.int32()) for name, value in whole.items()}
        | {ROW: pa.array(range(2, n + 2), pa.int64()), "age": pa.nulls(n, pa.float64())}
        | {FINDING + FIELD: pa.array(states, pa.int8())}
    )
    told = f"{listed.num_rows:,} of the rows read are no nodules but the files and scans that skipped.csv lists."
    rows = Rows(table=table, n_read=n + listed.num_rows, skipped=[listed], notes=[*notes, told])
    drop_each(rows, {row: problem for row, problem in enumerate(problems) if problem is not None})
    return rows


def _details(nodule: Nodule, aggregate: Aggregate) -> str | None:
    rating = nodule.malignancy(aggregate)
    found: list[dict[str, Any]] = []
    if rating is not None:
        found.append({"name": "rating", "value": round(rating, 3), "unit": "1"})
    if nodule.diameter_mm:
        found.append({"name": "diameter", "value": round(nodule.diameter_mm, 3), "unit": "mm"})
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
        root: folder with the CT series, and the XML unless it is elsewhere.
        xml: folder of the XML, where it is not under ``root``.
        nodules: a frozen table, whose nodules are taken as they are; the XML is not read then.
        min_readers: nodules that fewer readers marked get no crop.
        rating: what of the readers' malignancy ratings decides the state.
        crops: what is cut.

    Raises:
        VividError: no CT series, no readings, or a frozen table that is not right.
    """
    if min_readers < 1:
        raise VividError(f"min_readers is {min_readers}: a nodule has at least 1 reader")
    skips = SkipList()
    index = index_files([root, *([xml] if xml else [])])
    if not index.series:
        raise VividError(f"{root}: no CT series in DICOM here; with the XML alone, --table-only makes the table")
    found, notes = _identities(index, nodules, skips)
    for path, detail in index.unreadable.items():
        skips.add(Path(path).name, path, "unreadable-dicom", detail)
    for uid in sorted(index.series.keys() - {nodule.series_uid for nodule in found}):
        skips.add(NODULES, uid, "no-nodules", "a CT series in which no reader rated a nodule, or without XML")

    rule = crops or CropRule()
    problems: list[tuple[str, str] | None] = []
    measured: list[Nodule] = []
    states: list[int] = []
    tally: Counter[str] = Counter()
    for nodule, series, problem in _in_series(found, index, skips, tally):
        known = nodule.measured(series) if series is not None else nodule
        state, problem = _state(known, rating, min_readers, problem)
        if problem is None and series is not None:
            problem = _write_crop(known, series, rule, out)
        measured.append(known)
        states.append(state)
        problems.append(problem)
    write_table(measured if nodules is None else found, out / NODULES)
    notes += [f"{n:,} scans {what}." for what, n in sorted(tally.items())]
    notes.append(
        f"Crops: {rule.crop_mm:g} mm in pixels of {rule.pixel_mm:g} mm, 3 slices {rule.slice_mm:g} mm apart, HU, "
        f"int16, air (-1024) outside the scan. State by the {rating} over readers, at least {min_readers}."
    )
    return Source(
        dataset="lidc-idri",
        rows=manifest_rows(measured, states, problems, skips.table(), notes, rule, rating),
        label_space=SPACE,
        image_root=out,
        files=[out / NODULES],
        official=frozenset(),
        label_policy=(
            f"The {rating} of the readers' malignancy ratings: at most 2 absent (benign), at least 4 present "
            "(malignant), between them uncertain."
        ),
        contradictions="keep",
        val=0.1,
        test=0.2,
    )


def read_identities(root: Path, *, xml: Path | None = None) -> tuple[list[Nodule], SkipList, list[str]]:
    """The table without a CT: nodules (nothing in mm but z), what was skipped, notes.

    Raises:
        VividError: no readings.
    """
    skips = SkipList()
    nodules, notes = _identities(index_files([root, *([xml] if xml else [])], dicom=False), None, skips)
    return nodules, skips, notes


def _identities(index: Index, frozen: Path | None, skips: SkipList) -> tuple[list[Nodule], list[str]]:
    others = [f"{n:,} other files: {what}." for what, n in sorted(index.other.items())]
    if frozen is not None:
        nodules = read_table(frozen)
        return nodules, [f"Identities of {len(nodules):,} nodules were taken from {frozen.name}.", *others]
    nodules, counts = read_scans(index.xml, skips)
    if not nodules:
        told = f"; the first was skipped: {skips.entries[0][3]}" if skips.entries else ""
        raise VividError(f"no rated nodule in {len(index.xml)} XML files{told}: give the readers' XML with --xml DIR")
    return nodules, [f"XML: {n:,} {what}." for what, n in counts.items()] + others


def _in_series(
    nodules: list[Nodule], index: Index, skips: SkipList, tally: Counter[str]
) -> Iterator[tuple[Nodule, Series | None, tuple[str, str] | None]]:
    """Each nodule with its series, one series in memory at a time, or with why there is none."""
    scans = [(uid, list(group)) for uid, group in groupby(nodules, key=lambda nodule: nodule.series_uid)]
    for uid, group in tqdm(scans, desc="scans", unit="scan", leave=False, disable=len(scans) < 5):
        series, problem = None, None
        if uid not in index.series:
            problem = ("no-dicom", "its CT series is not there")
        else:
            try:
                series = read_series(index.series[uid])
            except SeriesError as error:
                problem = ("unusable-series", str(error))
            else:
                if not series.regular:
                    tally["have slices that are missing, twice, or not equally far apart"] += 1
                for reason, n in series.left_out.items():
                    skips.add(NODULES, uid, "left-out-slices", f"{n} of {len(index.series[uid])} files: {reason}")
        for nodule in group:
            yield nodule, series, problem


def _state(
    nodule: Nodule, rating: Aggregate, min_readers: int, problem: tuple[str, str] | None
) -> tuple[int, tuple[str, str] | None]:
    value = nodule.malignancy(rating)
    if value is None:
        return encode(None), problem or ("no-rating", "no reader rated its malignancy")
    if nodule.n_readers < min_readers:
        problem = problem or ("few-readers", f"{nodule.n_readers} of at least {min_readers} readers")
    elif problem is None and not nodule.patient_id:
        problem = ("no-patient", "the DICOM files name no patient: no split can be drawn")
    return encode(load_label_space(SPACE).ratings[FIELD].state(value)), problem


def _write_crop(nodule: Nodule, series: Series, rule: CropRule, out: Path) -> tuple[str, str] | None:
    try:
        image = cut(series, nodule.sop_uid, nodule.x, nodule.y, rule)
    except Exception as error:  # decoders raise whatever they like on damaged files
        reason = "unknown-slice" if nodule.sop_uid not in series.index else "no-crop"
        return reason, str(error) or type(error).__name__
    with whole_file(out / crop_path(nodule)) as part:
        part.write_bytes(image.to_bytes())
    return None
