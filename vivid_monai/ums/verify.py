"""The verifier: checks one UMS record against the schema, its label space and its image's size."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space, side_in
from vivid_monai.ums.record import Record
from vivid_monai.ums.schema import SCHEMA_FILES, Violation, is_finite, pointer, schema_violations
from vivid_monai.ums.states import STATES

__all__ = ["Violation", "state_violations", "verify"]

LATERALITIES = ("left", "right", "bilateral", "midline")
LATERAL_VIEWS = ("lateral", "LL", "RL")
# Boxes computed in floats may end a rounding error beyond the edge, not a visible part of a pixel.
TOLERANCE = 1e-3
# Where a box starts, how far it reaches, and the image's size along it.
_AXES = (("x", "width", "width"), ("y", "height", "height"), ("z", "depth", "slices"))


def verify(record: Record | dict[str, Any], space: LabelSpace | None = None) -> list[Violation]:
    """Return every violation in a record (or in its JSON object), sorted by pointer; none means that it is valid.

    ``space``: the label space of the findings, one of your own included. Without it, the one of the package that the
    record names is used; where it names none, fields, hierarchy and No Finding cannot be checked, everything else is.
    Never raises on what the JSON holds: parts of a wrong type are violations, and the other checks pass over them.
    Codes: docs/ums.md.
    """
    data = record.to_dict() if isinstance(record, Record) else record
    found = set(schema_violations(data))
    if not isinstance(data, dict):
        return sorted(found)
    space, of_space = _label_space(data, space)
    found |= set(of_space)
    findings = {name: f for name, f in _object(data.get("findings")).items() if isinstance(f, dict)}
    image = _object(data.get("image"))
    if space is not None:
        found |= {
            Violation(pointer("findings", name), "unknown-field", _unknown(name, space))
            for name in findings
            if name not in space.fields
        }
        found |= set(state_violations({name: finding.get("state") for name, finding in findings.items()}, space))
    found |= set(_slice(_number(image.get("slice")), image, ("image", "slice")))
    for name, finding in findings.items():
        found |= set(_details(name, finding))
        found |= set(_measurements(name, finding, space))
        found |= set(_sides(name, finding, space, data.get("view")))
        found |= set(_boxes(name, finding, image))
    return sorted(found)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """A finite JSON number as a float, and ``None`` for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value) else None


def _items(finding: dict[str, Any], part: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Index and object of a list inside a finding; what is not an object is passed over."""
    values = finding.get(part)
    yield from ((i, v) for i, v in enumerate(values if isinstance(values, list) else ()) if isinstance(v, dict))


def _label_space(data: dict[str, Any], given: LabelSpace | None) -> tuple[LabelSpace | None, list[Violation]]:
    """The label space to check against, and what is wrong with the record's name for it."""
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


def _unknown(name: str, space: LabelSpace) -> str:
    try:
        return f"the field of label space {space.name!r} is called {space.resolve(name)!r}, not {name!r}"
    except VividError as error:
        return str(error)


def state_violations(states: dict[str, Any], space: LabelSpace) -> Iterator[Violation]:
    """Yield contradictions between states (field → "present", "absent" …): "hierarchy", "no-finding", "exclusive"."""
    present = [field for field in space.fields if states.get(field) == "present"]
    for field in present:
        where = pointer("findings", field, "state")
        for parent in space.ancestors(field):
            if states.get(parent) == "absent":
                message = f"{field!r} is present although {parent!r}, of which it is a kind, is absent"
                yield Violation(where, "hierarchy", message)
        if space.no_finding in present and field not in {space.no_finding, *space.no_finding_compatible}:
            message = f"{field!r} is present although {space.no_finding!r} is present too"
            yield Violation(where, "no-finding", message)
        if space.exclusive and field != present[0]:
            message = f"{field!r} and {present[0]!r} are both present, but {space.name} allows one"
            yield Violation(where, "exclusive", message)


def _details(name: str, finding: dict[str, Any]) -> Iterator[Violation]:
    """Details that the state forbids."""
    if "state" in finding and finding["state"] is None:
        for part in finding.keys() - {"state"}:
            message = f"{name!r} is unanswerable (null) and so can have no {part!r}"
            yield Violation(pointer("findings", name, part), "null-detail", message)
    if finding.get("state") == "absent":
        for part in finding.keys() & {"severity", "boxes"}:
            message = f"{name!r} is absent and so can have no {part!r}"
            yield Violation(pointer("findings", name, part), "absent-detail", message)


@cache
def _kinds() -> dict[str, dict[str, dict[str, float]]]:
    """Kind of measurement → unit → bounds ("above", "at_least", "at_most")."""
    return json.loads((SCHEMA_FILES / "measurements.json").read_text(encoding="utf-8"))


def _measurements(name: str, finding: dict[str, Any], space: LabelSpace | None) -> Iterator[Violation]:
    """Measurements of unknown kind or unit or out of range, and ratings that contradict the state."""
    for i, item in _items(finding, "measurements"):
        where = ("findings", name, "measurements", i)
        kind, unit, value = item.get("name"), item.get("unit"), _number(item.get("value"))
        if not isinstance(kind, str) or not isinstance(unit, str):
            continue
        if (units := _kinds().get(kind)) is None:
            message = f"{kind!r} is not a known measurement; known are {', '.join(_kinds())}"
            yield Violation(pointer(*where, "name"), "measurement", message)
        elif (bounds := units.get(unit)) is None:
            message = f"{kind} is not measured in {unit!r}, but in {' or '.join(units)}"
            yield Violation(pointer(*where, "unit"), "unit", message)
        elif value is not None:
            for problem in _outside(value, **bounds):
                yield Violation(pointer(*where, "value"), "range", f"{kind} of {value:g} {unit} is {problem}")
        if kind == "rating" and value is not None and space is not None and name in space.ratings:
            yield from _rating(name, value, finding.get("state"), space, pointer(*where, "value"))


def _outside(
    value: float, *, above: float | None = None, at_least: float | None = None, at_most: float | None = None
) -> Iterator[str]:
    if above is not None and value <= above:
        yield f"not above {above:g}"
    if at_least is not None and value < at_least:
        yield f"below {at_least:g}"
    if at_most is not None and value > at_most:
        yield f"above {at_most:g}"


def _rating(name: str, value: float, state: Any, space: LabelSpace, where: str) -> Iterator[Violation]:
    try:
        expected = space.ratings[name].state(value)
    except VividError as error:
        yield Violation(where, "range", str(error))
        return
    if state in (None, *STATES) and state != expected:
        message = f"a rating of {value:g} makes {name!r} {expected}, not {state if state is not None else 'null'}"
        yield Violation(where, "rating", message)


def _boxes(name: str, finding: dict[str, Any], image: dict[str, Any]) -> Iterator[Violation]:
    """Boxes of no extent, outside the image (as far as its size is known), or on another slice."""
    for i, box in _items(finding, "boxes"):
        where = ("findings", name, "boxes", i)
        for edge, side, along in _AXES:
            start, extent, size = _number(box.get(edge)), _number(box.get(side)), _number(image.get(along))
            if extent is not None and extent <= 0:
                message = f"{side} {extent:g} leaves the box without {'volume' if side == 'depth' else 'area'}"
                yield Violation(pointer(*where, side), "box-area", message)
            if start is not None and start < -TOLERANCE:
                message = f"the box starts at {edge} = {start:g}, outside the image"
                yield Violation(pointer(*where, edge), "box-outside", message)
            if start is not None and size is not None and (end := start + max(extent or 0, 0)) > size + TOLERANCE:
                message = f"the box ends at {edge} = {end:g}, the image at {size:g}"
                yield Violation(pointer(*where, side), "box-outside", message)
        at, own = _number(box.get("slice")), _number(image.get("slice"))
        if at is not None and own is not None and at != own:
            message = f"the box is on slice {at:g}, the record about slice {own:g}"
            yield Violation(pointer(*where, "slice"), "box-slice", message)
        if at is not None and "z" in box:
            message = "the box spans slices by z and depth, so it lies on no single slice"
            yield Violation(pointer(*where, "slice"), "box-slice", message)
        yield from _slice(at, image, (*where, "slice"))


def _slice(at: float | None, image: dict[str, Any], where: tuple[str | int, ...]) -> Iterator[Violation]:
    """A slice number beyond the volume."""
    slices = _number(image.get("slices"))
    if at is not None and slices is not None and at >= slices:
        message = f"slice {at:g} is not one of {slices:g} slices, counted from 0"
        yield Violation(pointer(*where), "box-slice", message)


def _sides(name: str, finding: dict[str, Any], space: LabelSpace | None, view: Any) -> Iterator[Violation]:
    """Sides that contradict each other: laterality, location, the field's own side, and the view.

    A left or right in the words of the location must agree with the laterality, both with the side that the field's
    name or anatomy fixes, and on a lateral projection, which lays the sides over each other, there is no laterality.
    """
    fixed = space.sides.get(name) if space is not None else side_in(name)
    laterality, location = finding.get("laterality"), finding.get("location")
    in_words = side_in(location) if isinstance(location, str) else None
    if laterality in LATERALITIES:
        where = pointer("findings", name, "laterality")
        if fixed is not None and laterality != fixed:
            yield Violation(where, "laterality", f"{name!r} is {fixed}, so its laterality cannot be {laterality}")
        if in_words is not None and laterality != in_words:
            message = f"the location {location!r} is {in_words}, the laterality {laterality}"
            yield Violation(where, "laterality", message)
        if view in LATERAL_VIEWS and laterality != "midline":
            message = f"a {view} view lays both sides over each other, so it shows no laterality {laterality}"
            yield Violation(where, "laterality", message)
    if fixed in ("left", "right") and in_words not in (None, fixed):
        message = f"the location {location!r} is {in_words}, but {name!r} is {fixed}"
        yield Violation(pointer("findings", name, "location"), "laterality", message)
