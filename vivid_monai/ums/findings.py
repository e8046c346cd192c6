"""Checks of findings: against the label space, against each other, and of the details of each."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.schema import SCHEMA_FILES, Violation, is_finite, pointer
from vivid_monai.ums.states import STATES

Answers = dict[str, dict[str, Any]]


def number(value: Any) -> float | None:
    """Return a finite JSON number as a float, and ``None`` for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value) else None


def items(finding: dict[str, Any], part: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield index and object of a list inside a finding, passing over what is not an object."""
    values = finding.get(part)
    yield from ((i, v) for i, v in enumerate(values if isinstance(values, list) else ()) if isinstance(v, dict))


def sets(answers: Answers, space: LabelSpace | None) -> Iterator[Violation]:
    """Yield unknown fields, and the contradictions between findings that a label space knows of."""
    if space is None:
        return
    for name in answers:
        if name not in space.fields:
            yield Violation(pointer("findings", name), "unknown-field", _unknown(name, space))
    present = [field for field in space.fields if _state(answers, field) == "present"]
    for field in present:
        where = pointer("findings", field, "state")
        for parent in space.ancestors(field):
            if _state(answers, parent) == "absent":
                message = f"{field!r} is present although {parent!r}, of which it is a kind, is absent"
                yield Violation(where, "hierarchy", message)
        if space.no_finding in present and field not in {space.no_finding, *space.no_finding_compatible}:
            message = f"{field!r} is present although {space.no_finding!r} is present too"
            yield Violation(where, "no-finding", message)
    if space.exclusive:
        for field in present[1:]:
            message = f"{field!r} and {present[0]!r} are both present, but {space.name} allows one"
            yield Violation(pointer("findings", field, "state"), "exclusive", message)


def _state(answers: Answers, field: str) -> Any:
    return answers.get(field, {}).get("state")


def _unknown(name: str, space: LabelSpace) -> str:
    try:
        return f"the field of label space {space.name!r} is called {space.resolve(name)!r}, not {name!r}"
    except VividError as error:
        return str(error)


def details(name: str, finding: dict[str, Any], space: LabelSpace | None) -> Iterator[Violation]:
    """Yield details that the state forbids, and measurements of unknown kind or unit or out of range."""
    state, where = finding.get("state"), ("findings", name)
    if "state" in finding and state is None:
        for part in finding.keys() - {"state"}:
            message = f"{name!r} is unanswerable (null) and so can have no {part!r}"
            yield Violation(pointer(*where, part), "null-detail", message)
    if state == "absent":
        for part in finding.keys() & {"severity", "boxes"}:
            yield Violation(pointer(*where, part), "absent-detail", f"{name!r} is absent and so can have no {part!r}")
    for i, item in items(finding, "measurements"):
        yield from _measurement(item, (*where, "measurements", i))
        if item.get("name") == "rating" and space is not None and name in space.ratings:
            yield from _rating(name, item, state, space, (*where, "measurements", i, "value"))


@cache
def _kinds() -> dict[str, dict[str, dict[str, float]]]:
    """Kind of measurement → unit → bounds ("above", "at_least", "at_most")."""
    return json.loads((SCHEMA_FILES / "measurements.json").read_text(encoding="utf-8"))


def _measurement(item: dict[str, Any], where: tuple[str | int, ...]) -> Iterator[Violation]:
    kind, unit, value = item.get("name"), item.get("unit"), number(item.get("value"))
    if not isinstance(kind, str) or not isinstance(unit, str):
        return
    if (units := _kinds().get(kind)) is None:
        message = f"{kind!r} is not a known measurement; known are {', '.join(_kinds())}"
        yield Violation(pointer(*where, "name"), "measurement", message)
    elif (bounds := units.get(unit)) is None:
        message = f"{kind} is not measured in {unit!r}, but in {' or '.join(units)}"
        yield Violation(pointer(*where, "unit"), "unit", message)
    elif value is not None:
        low, high, above = bounds.get("at_least"), bounds.get("at_most"), bounds.get("above")
        if above is not None and value <= above:
            yield Violation(pointer(*where, "value"), "range", f"{kind} of {value:g} {unit} is not above {above:g}")
        if low is not None and value < low:
            yield Violation(pointer(*where, "value"), "range", f"{kind} of {value:g} {unit} is below {low:g}")
        if high is not None and value > high:
            yield Violation(pointer(*where, "value"), "range", f"{kind} of {value:g} {unit} is above {high:g}")


def _rating(
    name: str, item: dict[str, Any], state: Any, space: LabelSpace, where: tuple[str | int, ...]
) -> Iterator[Violation]:
    if (value := number(item.get("value"))) is None:
        return
    try:
        expected = space.ratings[name].state(value)
    except VividError as error:
        yield Violation(pointer(*where), "range", str(error))
        return
    if state in (None, *STATES) and state != expected:
        message = f"a rating of {value:g} makes {name!r} {expected}, not {state if state is not None else 'null'}"
        yield Violation(pointer(*where), "rating", message)
