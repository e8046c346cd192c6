"""Read CSV and TSV tables with row numbers kept."""

import codecs
import csv
import difflib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from vivid_monai.errors import VividError
from vivid_monai.prepare.source import KEY, ROW, TABLE, Rows, constant, skip_list
from vivid_monai.storage.files import require_file

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
        Rows of string columns (a blank cell is ""), plus TABLE, ROW and KEY. Rows with too few or too many cells are
        listed as skipped; blank lines are no rows. A column without a name (NIH's trailing commas) becomes "column 12".

    Raises VividError: no such file, not text in that encoding, empty, a column missing or named twice, an unclosed
    quote.
    """
    names, lines = _header(path, delimiter, encoding)
    encoding = _codec(path, encoding)
    if missing := [name for name in required if name not in names]:
        there = ", ".join(map(repr, names))
        raise VividError(f"{path}: no column {', '.join(map(repr, missing))}; its columns are {there}")
    ragged: list[arrow_csv.InvalidRow] = []
    numbers: list[int] = []

    def list_ragged(row: arrow_csv.InvalidRow) -> str:
        ragged.append(row)
        numbers.append(row.number + 1 - lines)  # Arrow counts the header's lines, this package rows
        return "skip"

    # Arrow's reader, because pandas fills short rows up without a word; one thread, to know the numbers of such rows.
    reading = arrow_csv.ReadOptions(
        use_threads=False, block_size=_BLOCK_BYTES, encoding=encoding, column_names=names, skip_rows=lines
    )
    parsing = arrow_csv.ParseOptions(
        delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=list_ragged
    )
    as_text = arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    try:
        arrow = arrow_csv.read_csv(path, reading, parsing, as_text)
    except (pa.ArrowInvalid, UnicodeError) as error:
        raise VividError(f"{path}: not a readable table in {encoding}: {str(error).splitlines()[0]}") from error

    for number, row in zip(numbers, ragged, strict=True):
        if len(row.text.splitlines()) > 1:
            raise VividError(f"{path}: row {number} runs over several lines with the wrong number of cells{_OPEN}")
    for name in names:
        broken = pc.match_substring(arrow[name], "\n")
        if pc.any(broken).as_py() and (not multiline or (broken[-1].as_py() and _odd_quotes(path))):
            raise VividError(f"{path}: column {name!r} has a line break in a cell{_OPEN}")

    n_read = arrow.num_rows + len(ragged)
    table = arrow.to_pandas()
    del arrow
    blank = table.eq("").all(axis=1)
    table.insert(0, TABLE, constant(path.name, table.index))
    table.insert(1, ROW, np.delete(np.arange(2, n_read + 2), [number - 2 for number in numbers]))
    table.insert(2, KEY, table[key])
    detail = "{0.actual_columns} cells where the header has {0.expected_columns} (a truncated file?)"
    listed = [
        (path.name, number, row.text[:80], "ragged-row", detail.format(row))
        for number, row in zip(numbers, ragged, strict=True)
    ]
    return Rows(table[~blank], n_read - int(blank.sum()), [skip_list(listed)] if listed else [])


def _odd_quotes(path: Path) -> bool:
    """Whether the file has an odd number of quotes, so that one is open."""
    with pa.input_stream(str(path)) as stream:
        return sum(block.count(b'"') for block in iter(lambda: stream.read(_BLOCK_BYTES), b"")) % 2 == 1


def read_header(path: Path, *, delimiter: str = ",", encoding: str = "utf-8") -> list[str]:
    """The names of a table's columns. Raises a VividError as `read_csv` does."""
    return _header(path, delimiter, encoding)[0]


def _codec(path: Path, encoding: str) -> str:
    """Python's own name of an encoding."""
    try:
        "".encode(encoding)  # a codec that is of no text, such as rot13 or zlib, is a LookupError here
        return codecs.lookup(encoding).name
    except LookupError as error:
        near = difflib.get_close_matches(encoding.lower(), ("utf-8", "latin-1", "cp1252", "utf-16"), n=1)
        hint = near[0] if near else "utf-8, latin-1, cp1252 (Excel's 'ANSI')"
        raise VividError(f"{path}: no encoding {encoding!r}; there are such as {hint}") from error


def _header(path: Path, delimiter: str, encoding: str) -> tuple[list[str], int]:
    """The names of the columns, and over how many lines of the file they go."""
    size = 1 << 16
    require_file(path)
    encoding = _codec(path, encoding)
    try:
        with pa.input_stream(str(path)) as stream:
            start = stream.read(size)
        # The block may end inside a character; the header's line may not.
        errors = "strict" if len(start) < size else "ignore"
        text = start.decode("utf-8-sig" if encoding == "utf-8" else encoding, errors)
    except (OSError, pa.ArrowException) as error:
        raise VividError(f"{path}: cannot be read: {error}") from error
    except UnicodeError as error:
        raise VividError(f"{path}: not text in {encoding} ({error}); save it as UTF-8 or name its encoding") from error
    if not text.strip():
        raise VividError(f"{path}: the table is empty")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    first = next(reader)
    names = [" ".join(name.split()) or f"column {position}" for position, name in enumerate(first, start=1)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise VividError(f"{path}: more than one column is named {', '.join(map(repr, twice))}")
    return names, reader.line_num
