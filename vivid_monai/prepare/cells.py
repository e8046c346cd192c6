"""What the cells of label tables mean: missing words, numbers, ages, and identifiers that must stay whole."""

import re
from collections.abc import Iterable
from decimal import Decimal

from vivid_monai.errors import VividError
from vivid_monai.prepare.source import BadCell

MISSING = frozenset(
    ("", "-", "--", "?", "#n/a", "<na>", "n/a", "na", "nan", "nat", "nil", "none", "null", "unknown", "not available")
)
"""Words, in lower case, that other tools write where there is nothing."""

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_EXACT = 1 << 53
"""Up to here a float holds every whole number."""

_AGE = re.compile(r"(?P<bound>[<>≤≥=]*)\s*(?P<number>-?\d+(\.\d+)?)\s*(?P<plus>\+?)\s*(?P<unit>[a-z]*)", re.IGNORECASE)
_UNITS = {"y": 1.0, "m": 12.0, "w": 52.1775, "d": 365.25}


def is_missing(text: str) -> bool:
    """Whether a cell holds nothing, or a word for it."""
    return text.strip().casefold() in MISSING


def as_number(text: str) -> float | None:
    """The number that a cell holds; None for words."""
    try:
        return float(text)
    except ValueError:
        return None


def whole_number(text: str) -> int | None:
    """A whole number from 0; None where the cell is missing. Raises BadCell."""
    if is_missing(text):
        return None
    number = as_number(text)
    if number is None or number < 0 or not number.is_integer():
        raise BadCell("a whole number from 0")
    return int(number)


def age_in_years(text: str) -> float | None:
    """Years from "58", "58.0", "058Y", "13 months", "010W", "006D", or a bound ("90+", ">89"); None where missing.

    A bound is taken as the number that it names. An age that cannot be (NIH's table has 411) comes through, a negative
    one, too, so that the verifier lists its row.

    Raises:
        BadCell: no age.
    """
    if is_missing(text):
        return None
    found = _AGE.fullmatch(text.strip())
    unit = _UNITS.get(found["unit"][:1].lower() or "y") if found else None
    if found is None or unit is None:
        raise BadCell("an age such as '58', '058Y' or '90+'")
    return round(float(found["number"]) / unit, 3)


def is_bound(text: str) -> bool:
    """Whether an age is only a bound."""
    found = _AGE.fullmatch(text.strip())
    return found is not None and bool(found["bound"].strip("=") or found["plus"])


def require_exact(texts: Iterable[str], where: str) -> None:
    """Raise a VividError where an identifier was written as a float too large to be exact: its digits are lost."""
    for text in texts:
        inexact = _NUMBER.fullmatch(text) and not text.lstrip("+-").isdecimal()
        if inexact and abs(Decimal(text)) > _EXACT:
            raise VividError(
                f"{where} holds floats over 2^53, whose last digits are lost, so that two may have become one; write "
                "them as text or whole numbers where the table is made"
            )


def same_numbers(texts: Iterable[str]) -> dict[str, str]:
    """Identifier → how its number is written plainly ("7" for "007" and "7.0"), for those that are numbers."""
    plain = {}
    for text in texts:
        if _NUMBER.fullmatch(text):
            number = Decimal(text)
            whole = number == number.to_integral_value()
            plain[text] = format(number.to_integral_value() if whole else number.normalize(), "f")
    return plain
