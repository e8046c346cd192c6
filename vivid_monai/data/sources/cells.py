"""Cells of text as values: each distinct text is translated once, whatever the number of rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vivid_monai.data.columns import WORD
from vivid_monai.data.sources.rows import KEY, ROW, TABLE, Rows


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
