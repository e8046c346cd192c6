"""The manifest's columns: their Arrow types, and how a table is brought into that form."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.errors import VividError, first_line
from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space, parse_label_space
from vivid_monai.ums.record import Finding, ImageInfo, Provenance, Record
from vivid_monai.ums.states import decode, encode

LabelSpaceSource = str | Path | dict[str, Any]
"""A name in the package, the path of a JSON file, or that file's content."""


def stored_label_space(source: LabelSpaceSource) -> str | dict[str, Any]:
    """What to store: the name of a label space of the package, or the content of one of your own, which may change.

    Raises:
        VividError: no label space of that name, or not a valid one.
    """
    if isinstance(source, dict):
        open_label_space(source)
        return source
    if isinstance(source, str) and source in available_label_spaces():
        return source
    load_label_space(source)
    return json.loads(Path(source).read_text(encoding="utf-8"))


def open_label_space(stored: str | dict[str, Any]) -> LabelSpace:
    """The label space of what `stored_label_space` returned."""
    if isinstance(stored, str):
        return load_label_space(stored)
    return parse_label_space(json.dumps(stored), where=f"label space {stored.get('name', '?')!r}")


FINDING = "finding."
"""Prefix of the state columns, so that a field may bear any name, "view" or "split" included."""

WORD = pa.dictionary(pa.int32(), pa.string())
BOXES = pa.list_(
    pa.struct(
        [("field", pa.string())]
        + [(side, pa.float64()) for side in ("x", "y", "width", "height")]
        + [("slice", pa.int32())]
        + [(side, pa.float64()) for side in ("z", "depth")]
    )
)
"""Rectangles in pixels of the original image, from the outer corner of its first pixel; cuboids where z is not null."""

REQUIRED = ("id", "image", "patient_id", "split", "dataset", "modality", "anatomy", "labeller", "source")

_COLUMNS = {
    "id": pa.string(),
    "image": pa.string(),
    "slice": pa.int32(),
    "slices": pa.int32(),
    "height": pa.int32(),
    "width": pa.int32(),
    "patient_id": WORD,
    "study_id": pa.string(),
    "split": WORD,
    "modality": WORD,
    "anatomy": WORD,
    "view": WORD,
    "sex": WORD,
    "age": pa.float64(),
    "dataset": WORD,
    "labeller": WORD,
    "labeller_version": WORD,
    "source": WORD,
    "report_ref": pa.string(),
    "reader": WORD,
    "report": pa.string(),
    "boxes": BOXES,
    "mask": pa.string(),
    "details": pa.string(),
}


def state_columns(fields: Sequence[str]) -> list[str]:
    """Names of the columns of the states of these fields."""
    return [FINDING + field for field in fields]


def manifest_schema(fields: Sequence[str]) -> pa.Schema:
    """The Arrow schema of a manifest: the columns told in docs/data.md, then one int8 column for each field."""
    columns = [pa.field(name, kind, nullable=name not in REQUIRED) for name, kind in _COLUMNS.items()]
    return pa.schema(columns + [pa.field(name, pa.int8(), nullable=False) for name in state_columns(fields)])


def conform(table: pa.Table, fields: Sequence[str]) -> pa.Table:
    """The table in the manifest's schema: optional columns it lacks are null, columns the schema lacks are left out.

    Raises:
        VividError: a required column is absent, holds a null, or cannot be cast.
    """
    schema = manifest_schema(fields)
    return pa.table([conform_column(table, field) for field in schema], schema=schema)


def conform_column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """One column of the manifest's schema, as :func:`conform` makes it of a table."""
    if field.name not in table.column_names:
        if not field.nullable:
            raise VividError(f"the manifest has no column {field.name!r}, which it needs")
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    column = table[field.name]
    if not field.nullable and column.null_count:
        raise VividError(f"the manifest's column {field.name!r} has {column.null_count} empty cell(s)")
    try:
        if field.type == WORD and not pa.types.is_dictionary(column.type):
            return pc.dictionary_encode(column.cast(pa.string()))
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise VividError(
            f"the manifest's column {field.name!r} is {column.type}, not {field.type}: {first_line(error)}"
        ) from error


_FLAT = ("id", "patient_id", "study_id", "modality", "anatomy", "view", "sex", "age", "report")
_IMAGE = ("height", "width", "slice", "slices")
_PROVENANCE = ("dataset", "labeller", "labeller_version", "source", "report_ref", "reader")
_IN_COLUMNS = ("state", "boxes")


def row_of(record: Record, space: LabelSpace) -> dict[str, Any]:
    """The record's cells by column name; fields it does not speak of are null (−1), ``split`` is left to the caller.

    Raises:
        VividError: a finding is no field of the label space.
    """
    if unknown := [name for name in record.findings if name not in space.fields]:
        raise VividError(f"record {record.id!r}: {unknown[0]!r} is no field of label space {space.name!r}")
    row: dict[str, Any] = {"image": record.image.path}
    for part, names in ((record, _FLAT), (record.image, _IMAGE), (record.provenance, _PROVENANCE)):
        row |= {name: getattr(part, name) for name in names}
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
    """The record of a row, with every field of the label space; not checked, as rows are when a manifest is made."""
    details = json.loads(row["details"]) if row["details"] else {}
    more: dict[str, dict[str, Any]] = {field: {"boxes": [], **found} for field, found in details.items()}
    for box in row["boxes"] or ():
        sides = {key: value for key, value in box.items() if key != "field" and value is not None}
        more.setdefault(box["field"], {"boxes": []})["boxes"].append(sides)
    findings = {}
    for field in space.fields:
        state = decode(row[FINDING + field])
        findings[field] = Finding.from_dict({"state": state, **more[field]}) if field in more else Finding(state)
    return Record(
        **{name: row[name] for name in _FLAT},
        image=ImageInfo(row["image"], **{name: row[name] for name in _IMAGE}),
        findings=findings,
        provenance=Provenance(**{name: row[name] for name in _PROVENANCE}),
        label_space=space.name,
    )
