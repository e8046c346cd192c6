"""The verifier: everything that is wrong with a record, in one list."""

from typing import Any

from vivid_monai.ums import findings, geometry
from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space
from vivid_monai.ums.record import Record
from vivid_monai.ums.schema import Violation, pointer, schema_violations

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
