"""nodules.csv: the frozen identity of every nodule, to be kept with the results and published."""

import csv
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from vivid_monai.data.sources.lidc.nodules import Nodule
from vivid_monai.data.sources.lidc.reads import RATINGS
from vivid_monai.errors import VividError
from vivid_monai.files import whole_file

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
