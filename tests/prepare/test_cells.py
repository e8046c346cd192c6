"""Cells of text as values."""

import pyarrow as pa
import pytest

from vivid_monai.data.columns import WORD
from vivid_monai.prepare.csv_table import BadCell, CellReader, age_in_years, constant, distinct
from vivid_monai.prepare.source import Rows


def rows_of(cells: list[str]) -> Rows:
    n = len(cells)
    table = pa.table({"#table": ["t"] * n, "#row": list(range(2, n + 2)), "#key": cells, "c": cells})
    return Rows(table=table, n_read=n)


def test_distinct_reads_nulls_as_blank():
    codes, texts = distinct(pa.chunked_array([pa.array(["a", None]), pa.array(["b", "a"])]))
    assert [texts[code] for code in codes] == ["a", "", "b", "a"]


def test_each_distinct_text_is_translated_once_and_bad_ones_drop_their_rows():
    rows = rows_of(["1", " 0 ", "x", "1", "x"])
    seen = []

    def translate(text):
        seen.append(text)
        if text == "x":
            raise BadCell("1 or 0")
        return int(text)

    cells = CellReader(rows)
    column = cells.read("c", translate, pa.int8())
    assert sorted(seen) == ["0", "1", "x"]
    assert cells.first_problem() == (2, "column 'c' holds 'x', not 1 or 0")
    cells.finish({"v": column})
    assert rows.table["v"].to_pylist() == [1, 0, 1]
    assert rows.all_skipped()["row"].to_pylist() == [4, 6]


def test_words_become_a_dictionary_without_its_nulls():
    column = CellReader(rows_of(["Male", "", "Female", "Male"])).read("c", {"Male": "M", "Female": "F", "": None}, WORD)
    assert column.to_pylist() == ["M", None, "F", "M"]
    assert sorted(column.dictionary.to_pylist()) == ["F", "M"]


def test_constant():
    assert constant("a", 2).to_pylist() == ["a", "a"]
    assert constant(None, 2).to_pylist() == [None, None]


@pytest.mark.parametrize("text", ["abc", "-1", "nan", "5X", "Y"])
def test_what_is_no_age(text):
    with pytest.raises(BadCell):
        age_in_years(text)
