"""The rows that an adapter reads from a data set, and the list of rows that were skipped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from vivid_monai.data.columns import FINDING, LabelSpaceSource
from vivid_monai.errors import cut
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.states import NULL, PRESENT

TABLE, ROW, KEY = "#table", "#row", "#key"
"""Columns that a row keeps until the manifest is built: its file, its number there (1 is a CSV's header) and a name.
The sign keeps them apart from the columns of any table."""

SKIPPED = {"table": "str", "row": "Int64", "key": "str", "reason": "str", "detail": "str"}
"""Columns of a skip list and their types; files and scans have no row number."""

Contradictions = Literal["keep", "skip", "error"]


Translation = Callable[[str], Any] | Mapping[str, Any]
"""Stripped text of a cell → its value; what means nothing raises BadCell (a mapping: KeyError)."""


class BadCell(ValueError):
    """A cell's text means nothing in its column; the message says what would."""


@dataclass
class Rows:
    """A table from which rows are dropped; it always has the columns TABLE, ROW and KEY.

    Its text columns are translated by `read`, `states` and `listed`; `finish` then puts the translated ones in place.

    Attributes:
        table: the rows still in; a row keeps its index label when others are dropped.
        n_read: rows in the source tables, whether or not they could be used.
        skipped: tables with the columns of SKIPPED; every row that is not in ``table`` is in one of them.
        notes: sentences for the data card.
        problems: index label → the first cell of the row that could not be translated.
        about: the columns that tell what a row is about; two rows that agree in them repeat or contradict each other.
        private: columns of identifiers, whose cells no message quotes.
    """

    table: pd.DataFrame
    n_read: int
    skipped: list[pd.DataFrame] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    about: tuple[str, ...] = ("image", "slice")
    private: frozenset[str] = frozenset()

    def drop(self, mask: pd.Series | np.ndarray, reason: str | pd.Series, detail: str | pd.Series) -> None:
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

    def _distinct(self, name: str, translate: Translation, bad: Any) -> tuple[np.ndarray, list[Any]]:
        """Codes int (N,) of the column ``name``, and the values that they index, one for each distinct text.

        A bad cell has the value ``bad`` until `finish` drops its row.
        """
        codes, texts = pd.factorize(self.table[name])
        values: list[Any] = []
        for code, text in enumerate(texts):
            try:
                values.append(translate(text.strip()) if callable(translate) else translate[text.strip()])
            except (BadCell, KeyError) as error:
                known = ", ".join(map(repr, translate)) if isinstance(translate, Mapping) else str(error)
                told = f"holds {cut(text, 60)!r}, not {cut(known, 120)}"
                if name in self.private:
                    told = "holds an identifier, which cannot be meant here"
                for row in self.table.index[codes == code]:
                    self.problems.setdefault(row, f"column {name!r} {told}")
                values.append(bad)
        return codes, values

    def read(self, name: str, translate: Translation, dtype: str) -> pd.Series:
        """The column ``name`` as a pandas type: "category" for words, "str", "float64", "Int32", or "int8" (states)."""
        codes, values = self._distinct(name, translate, bad=NULL if dtype == "int8" else None)
        return pd.Series(pd.array(values, dtype=dtype).take(codes), index=self.table.index)

    def states(self, fields: Sequence[str], read_from: Mapping[str, tuple[str, Translation]]) -> dict[str, pd.Series]:
        """State columns of ``fields``: each from its column, by what the cells mean there; null without a column."""
        never = pd.Series(NULL, self.table.index, dtype="int8")
        known = {field: self.read(column, states, "int8") for field, (column, states) in read_from.items()}
        return {FINDING + field: known.get(field, never) for field in fields}

    def listed(
        self,
        unlisted: Mapping[str, int] | Callable[[frozenset[str]], Mapping[str, int]],
        name: str,
        translate: Translation,
    ) -> dict[str, np.ndarray]:
        """State columns from a column whose cells are translated to sets of fields: those are present.

        ``unlisted``: every field → its state (int8) where it is not listed; or what gives it for the fields that any
        row lists.
        """
        codes, found = self._distinct(name, translate, bad=frozenset())
        other = unlisted(frozenset().union(*found)) if callable(unlisted) else unlisted
        by_text = {f: np.array([PRESENT if f in s else state for s in found], np.int8) for f, state in other.items()}
        return {FINDING + field: states[codes] for field, states in by_text.items()}

    def finish(self, columns: Mapping[str, Any]) -> None:
        """Put these columns in the place of those they were read from; drop rows with a bad cell ("bad-value").

        A column that is a word (or None) holds it in every row.
        """
        index = self.table.index
        full = {name: constant(c, index) if c is None or isinstance(c, str) else c for name, c in columns.items()}
        self.table = pd.concat([self.table[[TABLE, ROW, KEY]], pd.DataFrame(full, index=index)], axis=1)
        self.drop_each({row: ("bad-value", problem) for row, problem in self.problems.items()})


def differing(table: pd.DataFrame, names: Sequence[str], group: pd.Series) -> pd.DataFrame:
    """Which of the columns ``names`` differ within the group of each row; bool (N, names). Nulls are equal."""

    def codes_of(column: pd.Series) -> np.ndarray:
        # Boxes are lists, which have no hash.
        plain = column.map(str, na_action="ignore") if column.dtype == object else column
        return pd.factorize(plain)[0]

    codes = pd.DataFrame({name: codes_of(table[name]) for name in names}, table.index)
    return codes.groupby(group).transform("nunique") > 1


def constant(word: str | None, index: pd.Index) -> pd.Series:
    """A column of one word (or null)."""
    return pd.Series(pd.Categorical([word]).repeat(len(index)), index=index)


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
        open_is: the side that rows without a split are officially on, if any: none of their patients may be elsewhere.
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
    open_is: str | None = None
    contradictions: Contradictions = "keep"
    val: float = 0.1
    test: float = 0.2
