"""From XML files to nodules, scan by scan; what cannot be used is listed and the run goes on."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from vivid_monai.data.sources.lidc.nodules import Nodule, nodules_of
from vivid_monai.data.sources.lidc.reads import RATINGS, ReadsError, ScanReads, read_xml
from vivid_monai.data.sources.rows import skip_list


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
