"""Read a CSV or TSV strictly: every cell as text, every row either in the table or listed with its number."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from vivid_monai.data.columns import WORD
from vivid_monai.errors import VividError
from vivid_monai.prepare.source import KEY, ROW, TABLE, Rows, skip_list


class BadCell(ValueError):
    """A cell's text means nothing in its column; the message says what would."""


def distinct(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Codes int32 (N,) and the distinct texts that they index (a null reads as "")."""
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode("encode")
    texts = ["" if text is None else text for text in encoded.dictionary.to_pylist()]
    if encoded.indices.null_count:  # nulls outside the dictionary
        texts.append("")
        return encoded.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False), texts
    return encoded.indices.to_numpy(zero_copy_only=False), texts


@dataclass(frozen=True)
class Translated:
    """A column by its distinct values: ``values[codes[i]]`` is the value of row i, ``None`` where blank or bad."""

    values: list[Any]
    codes: np.ndarray

    def array(self, kind: pa.DataType) -> pa.Array:
        """The column as an Arrow array, one value for each row."""
        return self.take(self.values, kind)

    def take(self, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        """As `array`, with other values in the place of the distinct ones."""
        if kind == WORD:
            return pa.DictionaryArray.from_arrays(
                *_without_null(self.codes, [None if v is None else str(v) for v in values])
            )
        return pa.array(values, kind).take(pa.array(self.codes))


class CellReader:
    """Translate the columns of ``rows``, remembering for each row its first bad cell.

    `finish` then puts the translated columns in place and drops those rows, each listed with its column and text.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._problem: dict[int, str] = {}

    def translate(self, name: str, translate: Callable[[str], Any] | Mapping[str, Any]) -> Translated:
        """The column ``name``; ``translate`` gives the value of a stripped text or raises BadCell (a dict: KeyError).

        A bad cell has the value ``None`` until `finish` drops its row.
        """
        codes, texts = distinct(self._rows.table[name])
        values: list[Any] = []
        for code, text in enumerate(texts):
            try:
                values.append(translate(text.strip()) if callable(translate) else translate[text.strip()])
            except (BadCell, KeyError) as error:
                known = ", ".join(repr(key) for key in translate) if isinstance(translate, Mapping) else str(error)
                for row in np.flatnonzero(codes == code).tolist():
                    self._problem.setdefault(row, f"column {name!r} holds {text!r}, not {known}")
                values.append(None)
        return Translated(values, codes)

    def read(self, name: str, translate: Callable[[str], Any] | Mapping[str, Any], kind: pa.DataType) -> pa.Array:
        """The column ``name`` as ``kind``: `translate`, then `Translated.array`."""
        return self.translate(name, translate).array(kind)

    def first_problem(self) -> tuple[int, str] | None:
        """Position and problem of the first row with a bad cell."""
        return min(self._problem.items(), default=None)

    def finish(self, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> None:
        """Put these columns in the place of those they were read from; drop rows with a bad cell ("bad-value")."""
        rows = self._rows
        kept = {name: rows.table[name] for name in (TABLE, ROW, KEY)}
        rows.table = pa.table({**kept, **columns})
        mask = np.zeros(rows.table.num_rows, dtype=bool)
        mask[list(self._problem)] = True
        rows.drop(mask, "bad-value", [self._problem[row] for row in np.flatnonzero(mask).tolist()])


def _without_null(codes: np.ndarray, words: list[str | None]) -> tuple[pa.Array, pa.Array]:
    """Indices (null where the word is ``None``) and distinct words for a dictionary array."""
    kept = list(dict.fromkeys(word for word in words if word is not None))
    index = {word: position for position, word in enumerate(kept)}
    place = pa.array([None if word is None else index[word] for word in words], pa.int32())
    return place.take(pa.array(codes)), pa.array(kept, pa.string())


def constant(word: str | None, n: int) -> pa.Array:
    """A dictionary column of one word (or null), n times."""
    codes = pa.array(np.zeros(n, dtype=np.int32)) if word is not None else pa.nulls(n, pa.int32())
    return pa.DictionaryArray.from_arrays(codes, pa.array([] if word is None else [word], pa.string()))


def age_in_years(text: str) -> float | None:
    """Years from "58", "58.0", "058Y", "013M" (months), "010W" or "006D".

    ``None`` where blank, and above 130: NIH's table has a few typing errors such as 411.
    """
    if not text:
        return None
    number, unit = (text[:-1], text[-1].upper()) if text[-1].isalpha() else (text, "Y")
    try:
        years = float(number) / {"Y": 1, "M": 12, "W": 52.1775, "D": 365.25}[unit]
    except (ValueError, KeyError):
        raise BadCell("an age such as '58' or '058Y'") from None
    if not years >= 0:
        raise BadCell("an age such as '58' or '058Y'")
    return round(years, 3) if years <= 130 else None


_BLOCK_BYTES = 1 << 24
_OPEN = ": is there a quote that nothing closes?"


def read_csv(
    path: Path,
    *,
    required: Sequence[str],
    key: str,
    delimiter: str = ",",
    encoding: str = "utf-8",
    multiline: bool = False,
) -> Rows:
    """Read a table whose first row names the columns (compressed files by their suffix: .gz, .bz2, .zst).

    Args:
        required: columns that must exist.
        key: the column that names a row where it has to be listed as skipped.
        multiline: cells may hold line breaks. Where they may not, a quote that is never closed cannot go unnoticed.

    Returns:
        Rows of string columns (no nulls: a blank cell is ""), plus TABLE, ROW and KEY. Rows
        with too few or too many cells are listed as skipped; blank lines are no rows. A column without a name (NIH's
        trailing commas) becomes "column 12".

    Raises:
        VividError: no such file, not text in that encoding, empty, a column missing or named twice, an unclosed quote.
    """
    names = read_header(path, delimiter=delimiter, encoding=encoding)
    missing = [name for name in required if name not in names]
    if missing:
        raise VividError(
            f"{path}: no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, names))}"
        )

    ragged: list[arrow_csv.InvalidRow] = []

    def list_ragged(row: arrow_csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(
                # Row numbers of ragged rows are only known to the single-threaded reader.
                use_threads=False,
                block_size=_BLOCK_BYTES,
                encoding=encoding,
                column_names=names,
                skip_rows=1,
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter,
                newlines_in_values=True,
                ignore_empty_lines=False,
                invalid_row_handler=list_ragged,
            ),
            convert_options=arrow_csv.ConvertOptions(column_types={name: pa.string() for name in names}),
        )
    except (pa.ArrowInvalid, UnicodeError) as error:
        raise VividError(f"{path}: not a readable table in {encoding}: {str(error).splitlines()[0]}") from error

    for row in ragged:
        if len(row.text.splitlines()) > 1:
            raise VividError(f"{path}: row {row.number} runs over several lines with the wrong number of cells{_OPEN}")
    for name in table.column_names:
        broken = pc.match_substring(table[name], "\n")
        if (not multiline and pc.any(broken).as_py()) or (
            multiline and len(table) and broken[-1].as_py() and _odd(path)
        ):
            raise VividError(f"{path}: column {name!r} has a line break in a cell{_OPEN}")
    return _number(table, ragged, path=path, key=key)


def _odd(path: Path) -> bool:
    """Whether the file has an odd number of quotes, so that one is open."""
    with pa.input_stream(str(path)) as stream:
        return sum(block.count(b'"') for block in iter(lambda: stream.read(_BLOCK_BYTES), b"")) % 2 == 1


def read_header(path: Path, *, delimiter: str = ",", encoding: str = "utf-8") -> list[str]:
    """The names of a table's columns. Raises a VividError as `read_csv` does."""
    try:
        with pa.input_stream(str(path)) as stream:
            start = stream.read(1 << 16)
    except (OSError, pa.ArrowException) as error:
        raise VividError(f"{path}: cannot be read: {error}") from error
    try:
        # The block may end inside a character; the header's line may not.
        text = start.decode(
            "utf-8-sig" if encoding == "utf-8" else encoding, errors="strict" if len(start) < 1 << 16 else "ignore"
        )
    except UnicodeError as error:
        raise VividError(f"{path}: not text in {encoding} ({error}); save it as UTF-8 or name its encoding") from error
    if not text.strip():
        raise VividError(f"{path}: the table is empty")
    first = next(csv.reader(text.splitlines(), delimiter=delimiter))
    names = [name.strip() or f"column {position}" for position, name in enumerate(first, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise VividError(f"{path}: more than one column is named {', '.join(map(repr, twice))}")
    return names


def _number(table: pa.Table, ragged: list[arrow_csv.InvalidRow], *, path: Path, key: str) -> Rows:
    n_read = table.num_rows + len(ragged)
    numbers = np.setdiff1d(np.arange(2, n_read + 2), [row.number for row in ragged])
    origin = pa.DictionaryArray.from_arrays(np.zeros(table.num_rows, dtype=np.int8), [path.name])
    for name, column in ((TABLE, origin), (ROW, pa.array(numbers)), (KEY, table[key])):
        table = table.append_column(name, column)
    rows = Rows(table=table, n_read=n_read)
    if ragged:
        details = [
            f"{r.actual_columns} cells where the header has {r.expected_columns} (a truncated file?)" for r in ragged
        ]
        keys = [r.text[:80] for r in ragged]
        rows.skipped.append(
            skip_list(
                [path.name] * len(ragged), [r.number for r in ragged], keys, ["ragged-row"] * len(ragged), details
            )
        )
    cells = [table[name] for name in table.column_names if name not in (TABLE, ROW, KEY)]
    blank = pc.equal(cells[0], "")
    if pc.any(blank).as_py():
        for column in cells[1:]:
            blank = pc.and_(blank, pc.equal(column, ""))
        rows.table = rows.table.filter(pc.invert(blank))
        rows.n_read -= pc.sum(blank).as_py()
    return rows
