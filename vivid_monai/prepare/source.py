"""The rows that an adapter reads from a data set, and the list of rows that were skipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from vivid_monai.data.columns import LabelSpaceSource
from vivid_monai.storage.files import whole_file

TABLE, ROW, KEY = "#table", "#row", "#key"
"""Columns that a row keeps until the manifest is built: its file, its number there (1 is a CSV's header) and a name.
The sign keeps them apart from the columns of any table."""

SKIPPED = {"table": "str", "row": "Int64", "key": "str", "reason": "str", "detail": "str"}
"""Columns of a skip list and their types; files and scans have no row number."""

Contradictions = Literal["keep", "skip", "error"]


@dataclass
class Rows:
    """A table from which rows are dropped; it always has the columns TABLE, ROW and KEY.

    Attributes:
        table: the rows still in; a row keeps its index label when others are dropped.
        n_read: rows in the source tables, whether or not they could be used.
        skipped: tables with the columns of SKIPPED; every row that is not in ``table`` is in one of them.
        notes: sentences for the data card.
    """

    table: pd.DataFrame
    n_read: int
    skipped: list[pd.DataFrame] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, mask: "pd.Series | np.ndarray", reason: str | pd.Series, detail: str | pd.Series) -> None:
        """Move the rows where ``mask`` (bool, N) is true to the skip list.

        ``reason`` (a short code, counted in the card) and ``detail`` (a sentence) are one for all rows, or series by
        index label.
        """
        if mask.any():
            gone = self.table.loc[mask, [TABLE, ROW, KEY]].set_axis(["table", "row", "key"], axis=1)
            self.skipped.append(gone.assign(reason=reason, detail=detail).astype(SKIPPED))
            self.table = self.table.loc[~mask]

    def drop_each(self, problems: Mapping[int, tuple[str, str]]) -> None:
        """Move rows to the skip list: index label → (reason, detail)."""
        if problems:
            found = pd.DataFrame.from_dict(problems, orient="index", columns=["reason", "detail"])
            self.drop(self.table.index.isin(found.index), found["reason"], found["detail"])

    def all_skipped(self) -> pd.DataFrame:
        """Everything left behind, by table and row (the columns of SKIPPED)."""
        listed = pd.concat([skip_list([]), *self.skipped], ignore_index=True)
        return listed.sort_values(["table", "row"], kind="stable", ignore_index=True)


def skip_list(entries: Sequence[tuple[str, int | None, str, str, str]]) -> pd.DataFrame:
    """A skip list of (table, row, key, reason, detail)."""
    return pd.DataFrame(list(entries), columns=list(SKIPPED)).astype(SKIPPED)


def write_skip_list(skipped: pd.DataFrame, path: Path) -> None:
    """Write a skip list as CSV; the file appears complete or not at all."""
    with whole_file(path) as part:
        skipped.to_csv(part, index=False, lineterminator="\n")


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
        val, test: default fractions of the patients without an official split that go to val and to test.
    """

    dataset: str
    rows: Rows
    label_space: LabelSpaceSource
    image_root: Path
    files: list[Path]
    label_policy: str
    official: frozenset[str] = frozenset()
    contradictions: Contradictions = "keep"
    val: float = 0.1
    test: float = 0.2
