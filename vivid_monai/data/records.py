"""A UMS record as a row of the manifest, and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vivid_monai.data.columns import FINDING
from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.record import Finding, ImageInfo, Provenance, Record
from vivid_monai.ums.states import decode, encode

_FLAT = ("id", "patient_id", "study_id", "modality", "anatomy", "view", "sex", "age", "report")
_IMAGE = ("height", "width", "slice", "slices")
_PROVENANCE = ("dataset", "labeller", "labeller_version", "source", "report_ref", "reader")
_IN_COLUMNS = ("state", "boxes")


def row_of(record: Record, space: LabelSpace) -> dict[str, Any]:
    """The record's cells by column name; fields it does not speak of are null (−1), ``split`` is left to the caller.

    Raises:
        VividError: a finding is no field of the label space.
    """
    unknown = [name for name in record.findings if name not in space.fields]
    if unknown:
        raise VividError(f"record {record.id!r}: {unknown[0]!r} is no field of label space {space.name!r}")
    row: dict[str, Any] = {name: getattr(record, name) for name in _FLAT}
    row["image"] = record.image.path
    row |= {name: getattr(record.image, name) for name in _IMAGE}
    row |= {name: getattr(record.provenance, name) for name in _PROVENANCE}
    details: dict[str, Any] = {}
    boxes: list[dict[str, Any]] = []
    for field in space.fields:
        finding = record.findings.get(field, Finding(None))
        row[FINDING + field] = encode(finding.state)
        boxes += [{"field": field, **asdict(box)} for box in finding.boxes]
        if more := {key: value for key, value in finding.to_dict().items() if key not in _IN_COLUMNS}:
            details[field] = more
    row["boxes"] = boxes or None
    row["details"] = json.dumps(details, ensure_ascii=False) if details else None
    return row


def record_of(row: Mapping[str, Any], space: LabelSpace) -> Record:
    """The record of a row, with every field of the label space among its findings.

    Nothing is checked: a manifest's rows were verified when it was made.
    """
    details = json.loads(row["details"]) if row["details"] else {}
    boxes: dict[str, list[dict[str, Any]]] = {}
    for box in row["boxes"] or ():
        boxes.setdefault(box["field"], []).append({key: value for key, value in box.items() if key != "field"})
    findings = {}
    for field in space.fields:
        state = decode(row[FINDING + field])
        if field in boxes or field in details:
            more = {"boxes": boxes.get(field, ()), **details.get(field, {})}
            findings[field] = Finding.from_dict({"state": state, **more})
        else:
            findings[field] = Finding(state)
    return Record(
        **{name: row[name] for name in _FLAT},
        image=ImageInfo(row["image"], **{name: row[name] for name in _IMAGE}),
        findings=findings,
        provenance=Provenance(**{name: row[name] for name in _PROVENANCE}),
        label_space=space.name,
    )
