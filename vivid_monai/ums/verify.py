"""The verifier: checks one UMS record against the schema, its label space and its image's size."""

import json
import operator
from collections.abc import Iterator
from functools import cache
from typing import Any

from vivid_monai.errors import LONGEST, VividError, cut
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
_BOUNDS = {"above": (operator.le, "not above"), "at_least": (operator.lt, "below"), "at_most": (operator.gt, "above")}

Found = Iterator[tuple[tuple[str | int, ...], str, str]]
"""Violations of a finding: keys below it, code, message."""


def verify(record: Record | dict[str, Any], space: LabelSpace | None = None) -> list[Violation]:
    """Return every violation in a record (or in its JSON object), sorted by pointer; none means that it is valid.

    ``space``: the label space of the findings. Without it, the one of the package that the record names is used; where
    it names none, fields, hierarchy and No Finding are not checked. Never raises on what the JSON holds: parts of a
    wrong type are violations, and the other checks pass over them. Codes: docs/ums.md.
    """
    data = record.to_dict() if isinstance(record, Record) else record
    found = set(schema_violations(data))
    if not isinstance(data, dict):
        return sorted(found)
    space, of_space = _label_space(data, space)
    found |= set(of_space)
    findings = {name: f for name, f in _object(data.get("findings")).items() if isinstance(f, dict)}
    image = _object(data.get("image"))
    if (message := _beyond(image.get("slice"), image)) is not None:
        found.add(Violation(pointer("image", "slice"), "box-slice", message))
    if space is not None:
        found |= set(state_violations({name: finding.get("state") for name, finding in findings.items()}, space))
    for name, finding in findings.items():
        if space is not None and name not in space.fields:
            found.add(Violation(pointer("findings", name), "unknown-field", _unknown(name, space)))
        checks = (_details(name, finding), _measurements(name, finding, space), _boxes(finding, image))
        for check in (*checks, _sides(name, finding, space, data.get("view"))):
            found |= {Violation(pointer("findings", name, *path), code, message) for path, code, message in check}
    return sorted(one._replace(message=cut(one.message, LONGEST)) for one in found)


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
    if not isinstance(named, str) or (given is not None and named == given.name):
        return given, []
    if given is not None:
        message = f"the record says {named!r}, but is checked against {given.name!r}"
    elif named in available_label_spaces():  # a name only, never a path: what a record says must not open files
        return load_label_space(named), []
    else:
        message = f"{named!r} is not a label space of the package; give its file to the verifier"
    return given, [Violation(pointer("label_space"), "label-space", message)]


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
            yield Violation(where, "no-finding", f"{field!r} is present although {space.no_finding!r} is present too")
        if space.exclusive and field != present[0]:
            message = f"{field!r} and {present[0]!r} are both present, but {space.name} allows one"
            yield Violation(where, "exclusive", message)


def _details(name: str, finding: dict[str, Any]) -> Found:
    """Details that the state forbids."""
    if "state" in finding and finding["state"] is None:
        for part in finding.keys() - {"state"}:
            yield (part,), "null-detail", f"{name!r} is unanswerable (null) and so can have no {part!r}"
    if finding.get("state") == "absent":
        for part in finding.keys() & {"severity", "boxes"}:
            yield (part,), "absent-detail", f"{name!r} is absent and so can have no {part!r}"


@cache
def _kinds() -> dict[str, dict[str, dict[str, float]]]:
    """Kind of measurement → unit → bounds ("above", "at_least", "at_most")."""
    return json.loads((SCHEMA_FILES / "measurements.json").read_text(encoding="utf-8"))


def _measurements(name: str, finding: dict[str, Any], space: LabelSpace | None) -> Found:
    """Measurements of unknown kind or unit or out of range, and ratings that contradict the state."""
    for i, item in _items(finding, "measurements"):
        kind, unit, value = item.get("name"), item.get("unit"), _number(item.get("value"))
        if not isinstance(kind, str) or not isinstance(unit, str):
            continue
        where = ("measurements", i, "value")
        if (units := _kinds().get(kind)) is None:
            known = ", ".join(_kinds())
            yield (*where[:2], "name"), "measurement", f"{kind!r} is not a known measurement; known are {known}"
        elif (bounds := units.get(unit)) is None:
            yield (*where[:2], "unit"), "unit", f"{kind} is not measured in {unit!r}, but in {' or '.join(units)}"
        elif value is not None:
            for bound, limit in bounds.items():
                is_broken, words = _BOUNDS[bound]
                if is_broken(value, limit):
                    yield where, "range", f"{kind} of {value:g} {unit} is {words} {limit:g}"
        if kind == "rating" and value is not None and space is not None and name in space.ratings:
            state = finding.get("state")
            try:
                expected = space.ratings[name].state(value)
            except VividError as error:
                yield where, "range", str(error)
            else:
                if state in (None, *STATES) and state != expected:
                    message = (
                        f"a rating of {value:g} makes {name!r} {expected}, not {'null' if state is None else state}"
                    )
                    yield where, "rating", message


def _boxes(finding: dict[str, Any], image: dict[str, Any]) -> Found:
    """Boxes of no extent, outside the image (as far as its size is known), or on another slice."""
    for i, box in _items(finding, "boxes"):
        for edge, side, along in _AXES:
            start, extent, size = _number(box.get(edge)), _number(box.get(side)), _number(image.get(along))
            if extent is not None and extent <= 0:
                message = f"{side} {extent:g} leaves the box without {'volume' if side == 'depth' else 'area'}"
                yield ("boxes", i, side), "box-area", message
            if start is not None and start < -TOLERANCE:
                yield ("boxes", i, edge), "box-outside", f"the box starts at {edge} = {start:g}, outside the image"
            if start is not None and size is not None and (end := start + max(extent or 0, 0)) > size + TOLERANCE:
                message = f"the box ends at {edge} = {end:g}, the image at {size:g}"
                yield ("boxes", i, side), "box-outside", message
        at, own = _number(box.get("slice")), _number(image.get("slice"))
        if at is not None and own is not None and at != own:
            yield ("boxes", i, "slice"), "box-slice", f"the box is on slice {at:g}, the record about slice {own:g}"
        if at is not None and "z" in box:
            message = "the box spans slices by z and depth, so it lies on no single slice"
            yield ("boxes", i, "slice"), "box-slice", message
        if (beyond := _beyond(at, image)) is not None:
            yield ("boxes", i, "slice"), "box-slice", beyond


def _beyond(place: Any, image: dict[str, Any]) -> str | None:
    """What is wrong with a slice number beyond the volume."""
    at, slices = _number(place), _number(image.get("slices"))
    if at is None or slices is None or at < slices:
        return None
    return f"slice {at:g} is not one of {slices:g} slices, counted from 0"


def _sides(name: str, finding: dict[str, Any], space: LabelSpace | None, view: Any) -> Found:
    """Sides that contradict each other: laterality, location, the field's own side, and the view."""
    fixed = space.sides.get(name) if space is not None else side_in(name)
    laterality, location = finding.get("laterality"), finding.get("location")
    in_words = side_in(location) if isinstance(location, str) else None
    where = ("laterality",)
    if laterality in LATERALITIES:
        if fixed is not None and laterality != fixed:
            yield where, "laterality", f"{name!r} is {fixed}, so its laterality cannot be {laterality}"
        if in_words is not None and laterality != in_words:
            yield where, "laterality", f"the location {location!r} is {in_words}, the laterality {laterality}"
        if view in LATERAL_VIEWS and laterality != "midline":
            message = f"a {view} view lays both sides over each other, so it shows no laterality {laterality}"
            yield where, "laterality", message
    if fixed in ("left", "right") and in_words not in (None, fixed):
        yield ("location",), "laterality", f"the location {location!r} is {in_words}, but {name!r} is {fixed}"
