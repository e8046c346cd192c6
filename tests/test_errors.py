"""Messages are one line that a person reads to its end."""

from vivid_monai.errors import VividError, first_line, one_line


def test_a_long_message_keeps_what_is_wrong_and_the_way_out():
    assert one_line(VividError("row 7:\n  mend it")) == "row 7: mend it"
    assert one_line(KeyError()) == "KeyError"
    told = one_line(VividError(f"table.csv, row 7: {'x ' * 5000}x. Mend the table"))
    assert len(told) <= 300
    assert told.startswith("table.csv, row 7: x x")
    assert told.endswith("x x. Mend the table")
    assert " … " in told


def test_the_first_line():
    assert first_line(VividError("\none\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("x" * 200 + "\nmore")) == "x" * 119 + "…"
