"""Tables read strictly: no row is lost without being listed."""

import gzip
from pathlib import Path

import pandas as pd
import pytest

from vivid_monai.errors import VividError
from vivid_monai.prepare.csv_table import read_csv
from vivid_monai.prepare.source import KEY, ROW, TABLE, BadCell, Rows

from .conftest import values


def read(path: Path, **options):
    return read_csv(path, required=["a", "b"], key="a", **options)


def write(tmp_path: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_cell_is_text_and_every_row_knows_its_number(tmp_path):
    rows = read(write(tmp_path, '\ufeffa,b\n1,\n"x, y",2.50\n'))
    assert rows.table[["a", "b"]].to_dict("list") == {"a": ["1", "x, y"], "b": ["", "2.50"]}
    assert values(rows.table[ROW]) == [2, 3]
    assert values(rows.table[TABLE]) == ["t.csv"] * 2
    assert values(rows.table[KEY]) == ["1", "x, y"]
    assert (rows.n_read, len(rows.all_skipped())) == (2, 0)


def test_a_row_with_too_few_or_too_many_cells_is_listed_with_its_number(tmp_path):
    rows = read(write(tmp_path, "a,b\n1,2\n3\n4,5\n6,7,8\n9,10"))
    assert values(rows.table["a"]) == ["1", "4", "9"]
    assert values(rows.table[ROW]) == [2, 4, 6]
    skipped = rows.all_skipped().to_dict("records")
    assert [(s["row"], s["key"], s["reason"]) for s in skipped] == [(3, "3", "ragged-row"), (5, "6,7,8", "ragged-row")]
    assert "1 cells where the header has 2" in skipped[0]["detail"]
    assert rows.n_read == 5


def test_a_file_cut_off_in_its_last_row_says_so(tmp_path):
    rows = read(write(tmp_path, "a,b,c\n1,2,3\n4,5,6\n7,8"))
    assert len(rows.table) == 2
    assert "truncated" in rows.all_skipped()["detail"][0]


def test_blank_lines_are_no_rows_but_count_for_the_numbers(tmp_path):
    rows = read(write(tmp_path, "a,b\n1,2\n\n3,4\n\n\n"))
    assert values(rows.table[ROW]) == [2, 4]
    assert (rows.n_read, len(rows.all_skipped())) == (2, 0)


@pytest.mark.parametrize("multiline", [True, False])
@pytest.mark.parametrize("line", ['"3,4', '3,"4'])
def test_a_quote_that_swallows_the_rest_of_the_table_is_an_error(tmp_path, line, multiline):
    with pytest.raises(VividError, match="quote that nothing closes"):
        read(write(tmp_path, f"a,b\n1,2\n{line}\n5,6\n"), multiline=multiline)


def test_cells_with_line_breaks_are_read_where_they_are_allowed(tmp_path):
    assert read(write(tmp_path, 'a,b\n1,"2\n3"\n'), multiline=True).table["b"].tolist() == ["2\n3"]


def test_compressed_delimited_and_encoded_tables(tmp_path):
    assert read(write(tmp_path, gzip.compress(b"a\tb\n1\t2\n"), "t.tsv.gz"), delimiter="\t").table["b"].tolist() == [
        "2"
    ]
    latin = write(tmp_path, "a,b\nMüller,2\n".encode("latin-1"))
    assert read(latin, encoding="latin-1").table["a"].tolist() == ["Müller"]


def test_headers_as_broken_as_nihs_get_names(tmp_path):
    rows = read_csv(write(tmp_path, "a,b,\n1,2,\n"), required=["a"], key="a")
    assert "column 3" in rows.table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Müller,a,b\n1,2,3\n".encode("latin-1"), "not text in utf-8"),
        (b"a,b\n" + b"1,2\n" * 20_000 + b"1,\xfc\n", "not a readable table in utf-8"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n\x00", "not text in utf-8"),
        (b"a,c\n1,2\n", "no column 'b'; its columns are 'a', 'c'"),
        (b"a,b,b\n1,2,3\n", "more than one column is named 'b'"),
    ],
)
def test_what_is_no_such_table_is_one_error(tmp_path, content, message):
    with pytest.raises(VividError, match=message) as caught:
        read(write(tmp_path, content))
    assert "t.csv" in str(caught.value)


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(VividError, match=r"none\.csv"):
        read(tmp_path / "none.csv")


def rows_of(cells: list[str]) -> Rows:
    n = len(cells)
    table = pd.DataFrame({"#table": ["t"] * n, "#row": list(range(2, n + 2)), "#key": cells, "c": cells})
    return Rows(table=table, n_read=n)


def test_each_distinct_text_is_translated_once_and_bad_ones_drop_their_rows():
    rows = rows_of(["1", " 0 ", "x", "1", "x"])
    seen = []

    def translate(text):
        seen.append(text)
        if text == "x":
            raise BadCell("1 or 0")
        return int(text)

    column = rows.read("c", translate, "int8")
    assert sorted(seen) == ["0", "1", "x"]
    assert rows.problems == dict.fromkeys((2, 4), "column 'c' holds 'x', not 1 or 0")
    rows.finish({"v": column})
    assert values(rows.table["v"]) == [1, 0, 1]
    assert rows.all_skipped()["row"].tolist() == [4, 6]


def test_words_become_categories_without_their_nulls():
    column = rows_of(["Male", "", "Female", "Male"]).read("c", {"Male": "M", "Female": "F", "": None}, "category")
    assert values(column) == ["M", None, "F", "M"]
    assert sorted(column.cat.categories) == ["F", "M"]


def test_a_word_stands_for_a_whole_column():
    rows = rows_of(["x", "y"])
    rows.finish({"a": "word", "b": None})
    assert values(rows.table[["a", "b"]]) == [{"a": "word", "b": None}] * 2


def test_a_header_may_have_line_breaks_and_rows_keep_their_numbers(tmp_path):
    rows = read(write(tmp_path, '"a","b","chest\nreader"\n1,2,3\n4,5\n'))
    assert list(rows.table.columns[3:]) == ["a", "b", "chest reader"]
    assert (values(rows.table["a"]), values(rows.table[ROW]), rows.n_read) == (["1"], [2], 2)
    assert rows.all_skipped()["row"].tolist() == [3]


@pytest.mark.parametrize("name", ["UTF-8", "utf8", "utf_8", "utf-8-sig"])
def test_every_spelling_of_utf_8_leaves_a_byte_order_mark_out(tmp_path, name):
    assert values(read(write(tmp_path, "\ufeffa,b\né,2\n"), encoding=name).table["a"]) == ["é"]


def test_an_encoding_that_is_none(tmp_path):
    with pytest.raises(VividError, match=r"no encoding 'ansi'; there are such as .*cp1252"):
        read(write(tmp_path, "a,b\n"), encoding="ansi")


@pytest.mark.parametrize("name", ["rot13", "zlib", "base64", "hex"])
def test_a_codec_of_no_text_is_no_encoding(tmp_path, name):
    with pytest.raises(VividError, match=f"no encoding '{name}'"):
        read(write(tmp_path, "a,b\n"), encoding=name)
