"""What every adapter hands over: rows in the manifest's columns, and what has to be told about them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.data.columns import LabelSpaceSource
from vivid_monai.storage.files import whole_file

TABLE, ROW, KEY = "#table", "#row", "#key"
"""Columns that a row keeps until the manifest is built: its file, its number there (1 is a CSV's header) and a name.
The sign keeps them apart from the columns of any table."""

SKIPPED_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("row", pa.int64()),
        ("key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass
class Rows:
    """A table from which rows are dropped by mask; it always has the columns TABLE, ROW and KEY.

    Attributes:
        table: the rows still in.
        n_read: rows in the source tables, whether or not they could be used.
        skipped: tables of SKIPPED_SCHEMA; every row that is not in ``table`` is in one of them.
        notes: sentences for the data card.
    """

    table: pa.Table
    n_read: int
    skipped: list[pa.Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, mask: np.ndarray | pa.ChunkedArray | pa.Array, reason: str, detail: str | Sequence[str] = "") -> int:
        """Take the rows where ``mask`` (bool, N) is true out, and list them.

        Args:
            reason: a short code, counted in the card.
            detail: one sentence for all of them, or one for each dropped row.

        Returns:
            How many rows were dropped.
        """
        if not isinstance(mask, np.ndarray):
            mask = pc.fill_null(mask, False).to_numpy(zero_copy_only=False) if len(mask) else np.zeros(0, dtype=bool)
        n = int(mask.sum())
        if n:
            gone = self.table.select([TABLE, ROW, KEY]).filter(pa.array(mask))
            details = [detail] * n if isinstance(detail, str) else list(detail)
            self.skipped.append(skip_list(gone[TABLE], gone[ROW], gone[KEY], [reason] * n, details))
            self.table = self.table.filter(pa.array(~mask))
        return n

    def all_skipped(self) -> pa.Table:
        """Everything left behind, by table and row (SKIPPED_SCHEMA)."""
        listed = pa.concat_tables([SKIPPED_SCHEMA.empty_table(), *self.skipped])
        return listed.sort_by([("table", "ascending"), ("row", "ascending")])


def skip_list(tables, rows, keys, reasons: Sequence[str], details: Sequence[str]) -> pa.Table:
    """A table of SKIPPED_SCHEMA from columns of equal length."""
    columns = zip(SKIPPED_SCHEMA, (tables, rows, keys, reasons, details), strict=True)
    cast = [(c.cast(f.type) if isinstance(c, pa.ChunkedArray | pa.Array) else pa.array(c, f.type)) for f, c in columns]
    return pa.table(cast, schema=SKIPPED_SCHEMA)


def write_skip_list(skipped: pa.Table, path: Path) -> None:
    """Write a table of SKIPPED_SCHEMA as CSV, whole or not at all."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(skipped.column_names)
        writer.writerows(zip(*(column.to_pylist() for column in skipped.columns), strict=True))


def concat(parts: Sequence[Rows]) -> Rows:
    """Several sources with the same columns as one."""
    return Rows(
        table=pa.concat_tables([p.table for p in parts]).unify_dictionaries(),
        n_read=sum(p.n_read for p in parts),
        skipped=[t for p in parts for t in p.skipped],
        notes=[note for p in parts for note in p.notes],
    )


Contradictions = Literal["keep", "skip", "error"]


@dataclass(kw_only=True)
class Source:
    """A data set as its adapter read it.

    Attributes:
        dataset: its name, for provenance.
        rows: the manifest's columns that the data set has; ``split`` is null where the patient's hash shall decide.
        label_space: the space of the ``finding.…`` columns.
        image_root: folder that relative image paths start from.
        files: the tables and lists that were read; the card holds their hashes.
        official: splits that the data set brings itself.
        label_policy: how cells became states, in a sentence or two.
        contradictions: what to do by default with rows that contradict themselves.
        val: default fraction of the patients without an official split that go to val.
        test: the same for test.
    """

    dataset: str
    rows: Rows
    label_space: LabelSpaceSource
    image_root: Path
    files: list[Path]
    official: frozenset[str]
    label_policy: str
    contradictions: Contradictions
    val: float
    test: float
