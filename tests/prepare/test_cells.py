"""Missing words, ages, identifiers."""

import pytest

from vivid_monai.errors import VividError
from vivid_monai.prepare.cells import age_in_years, is_bound, is_missing, require_exact, same_numbers, whole_number
from vivid_monai.prepare.source import BadCell


@pytest.mark.parametrize("text", ["", " ", "nan", "NaN", "NA", "-", "<NA>", "null", "None", "unknown"])
def test_words_for_nothing(text):
    assert is_missing(text)
    assert age_in_years(text) is None
    assert whole_number(text) is None


def test_a_zero_is_something():
    assert not is_missing("0")
    assert whole_number("0") == 0


@pytest.mark.parametrize(
    ("text", "years", "bound"),
    [
        ("58", 58.0, False), ("058Y", 58.0, False), ("18M", 1.5, False), ("6 months", 0.5, False), ("90+", 90.0, True),
        (">89", 89.0, True), ("≥ 90", 90.0, True), ("90+ years", 90.0, True), ("411", 411.0, False),
    ],
)  # fmt: skip
def test_ages(text, years, bound):
    assert age_in_years(text) == years
    assert is_bound(text) is bound


@pytest.mark.parametrize("text", ["abc", "inf", "5X", "Y", "1e400"])
def test_what_is_no_age(text):
    with pytest.raises(BadCell):
        age_in_years(text)


def test_identifiers_written_as_floats_are_exact_or_refused():
    require_exact(["10000000.0", "1.5", "12345678901234567890", "P17e3", ""], "column 'mrn'")
    for lost in ("1.2345678901234568e+18", "9007199254740994.0", "-1E+300"):
        with pytest.raises(VividError, match="column 'mrn' holds floats over 2\\^53") as error:
            require_exact([lost], "column 'mrn'")
        assert lost not in str(error.value)


def test_one_number_has_one_plain_form():
    plain = same_numbers(["7", "007", "7.0", "7e0", "7.50", "07.5", "P7", "10000000", "1E+7"])
    assert plain == {"7": "7", "007": "7", "7.0": "7", "7e0": "7", "7.50": "7.5", "07.5": "7.5", "10000000": "10000000",
                     "1E+7": "10000000"}  # fmt: skip
