"""The verifier: everything that is wrong with a record, in one list."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from vivid_monai.errors import VividError
from vivid_monai.ums import verify as findings
from vivid_monai.ums import verify as geometry
from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space, side_in
from vivid_monai.ums.record import Record
from vivid_monai.ums.schema import SCHEMA_FILES, Violation, is_finite, pointer, schema_violations
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


LATERALITIES = ("left", "right", "bilateral", "midline")
LATERAL_VIEWS = ("lateral", "LL", "RL")
# Boxes computed in floats may end a rounding error beyond the edge, not a visible part of a pixel.
TOLERANCE = 1e-3


def image(info: dict[str, Any]) -> Iterator[Violation]:
    """Yield a slice number beyond the volume."""
    at, slices = number(info.get("slice")), number(info.get("slices"))
    if at is not None and slices is not None and at >= slices:
        message = f"slice {at:g} is not one of {slices:g} slices, counted from 0"
        yield Violation(pointer("image", "slice"), "box-slice", message)


def boxes(name: str, finding: dict[str, Any], info: dict[str, Any]) -> Iterator[Violation]:
    """Yield boxes of no area, outside the image (as far as its size is known), or on another slice."""
    for i, box in items(finding, "boxes"):
        where = ("findings", name, "boxes", i)
        for edge, side in (("x", "width"), ("y", "height")):
            start, extent, size = number(box.get(edge)), number(box.get(side)), number(info.get(side))
            if extent is not None and extent <= 0:
                yield Violation(pointer(*where, side), "box-area", f"{side} {extent:g} leaves the box without area")
            if start is not None and start < -TOLERANCE:
                message = f"the box starts at {edge} = {start:g}, outside the image"
                yield Violation(pointer(*where, edge), "box-outside", message)
            if start is None or size is None:
                continue
            end = start + max(extent or 0, 0)
            if end > size + TOLERANCE:
                message = f"the box ends at {edge} = {end:g}, the image at {size:g}"
                yield Violation(pointer(*where, side), "box-outside", message)
        yield from _slice(number(box.get("slice")), info, where)


def _slice(at: float | None, info: dict[str, Any], where: tuple[str | int, ...]) -> Iterator[Violation]:
    if at is None:
        return
    own, slices = number(info.get("slice")), number(info.get("slices"))
    if own is not None and at != own:
        message = f"the box is on slice {at:g}, the record about slice {own:g}"
        yield Violation(pointer(*where, "slice"), "box-slice", message)
    if slices is not None and at >= slices:
        message = f"slice {at:g} is not one of {slices:g} slices, counted from 0"
        yield Violation(pointer(*where, "slice"), "box-slice", message)


def sides(name: str, finding: dict[str, Any], space: LabelSpace | None, view: Any) -> Iterator[Violation]:
    """Yield sides that contradict each other: laterality, location, the field's own side, and the view.

    A left or right in the words of the location must agree with the laterality, both with the side that the field's
    name or anatomy fixes, and on a lateral projection, which lays the sides over each other, there is no laterality.
    """
    fixed = space.sides.get(name) if space is not None else side_in(name)
    laterality = finding.get("laterality")
    location = finding.get("location")
    told = side_in(location) if isinstance(location, str) else None
    if laterality in LATERALITIES:
        where = pointer("findings", name, "laterality")
        if fixed is not None and laterality != fixed:
            yield Violation(where, "laterality", f"{name!r} is {fixed}, so its laterality cannot be {laterality}")
        if told is not None and laterality != told:
            message = f"the location {location!r} is {told}, the laterality {laterality}"
            yield Violation(where, "laterality", message)
        if view in LATERAL_VIEWS and laterality != "midline":
            message = f"a {view} view lays both sides over each other, so it shows no laterality {laterality}"
            yield Violation(where, "laterality", message)
    if fixed in ("left", "right") and told not in (None, fixed):
        message = f"the location {location!r} is {told}, but {name!r} is {fixed}"
        yield Violation(pointer("findings", name, "location"), "laterality", message)


__all__ = ["Violation", "verify"]


def verify(record: Record | dict[str, Any], label_space: LabelSpace | None = None) -> list[Violation]:
    """Return every violation in a record (or in its JSON object), sorted by pointer; none means that it is valid.

    Without ``label_space``, the one of the package that the record names is used; where it names none, fields,
    hierarchy and No Finding cannot be checked, everything else is. Never raises on what the JSON holds: parts of a
    wrong type are told as such and the other checks pass over them. Codes: docs/ums.md.
    """
    data = record.to_dict() if isinstance(record, Record) else record
    found = set(schema_violations(data))
    if not isinstance(data, dict):
        return sorted(found)
    space, about_space = _space(data, label_space)
    found |= set(about_space)
    answers = {name: f for name, f in _object(data.get("findings")).items() if isinstance(f, dict)}
    found |= set(findings.sets(answers, space))
    found |= set(geometry.image(_object(data.get("image"))))
    for name, finding in answers.items():
        found |= set(findings.details(name, finding, space))
        found |= set(geometry.sides(name, finding, space, data.get("view")))
        found |= set(geometry.boxes(name, finding, _object(data.get("image"))))
    return sorted(found)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _space(data: dict[str, Any], given: LabelSpace | None) -> tuple[LabelSpace | None, list[Violation]]:
    """Return the label space to check against, and what is wrong with the record's word about it."""
    named = data.get("label_space")
    if given is not None:
        if isinstance(named, str) and named != given.name:
            message = f"the record says {named!r}, but is checked against {given.name!r}"
            return given, [Violation(pointer("label_space"), "label-space", message)]
        return given, []
    if not isinstance(named, str):
        return None, []
    # A name only, never a path: what a record says must not open files.
    if named not in available_label_spaces():
        message = f"{named!r} is not a label space of the package; give its file to the verifier"
        return None, [Violation(pointer("label_space"), "label-space", message)]
    return load_label_space(named), []
