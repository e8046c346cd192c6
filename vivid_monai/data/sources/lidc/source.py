"""LIDC-IDRI into crops and rows of the manifest: one nodule, one row."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from vivid_monai.data.sources.lidc.crop import CropRule, cut
from vivid_monai.data.sources.lidc.index import Index, index_files
from vivid_monai.data.sources.lidc.manifest_rows import FIELD, NODULES, SPACE, crop_path, manifest_rows
from vivid_monai.data.sources.lidc.nodules import Aggregate, Nodule
from vivid_monai.data.sources.lidc.scans import SkipList, read_scans
from vivid_monai.data.sources.lidc.series import Series, SeriesError, read_series
from vivid_monai.data.sources.lidc.table import read_table, write_table
from vivid_monai.data.sources.source import Source
from vivid_monai.errors import VividError
from vivid_monai.files import whole_file
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.states import encode


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
