"""The manifest's columns: their Arrow types, and how a table is brought into that form."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.errors import VividError

FINDING = "finding."
"""Prefix of the state columns, so that a field may bear any name, "view" or "split" included."""

WORD = pa.dictionary(pa.int32(), pa.string())
BOXES = pa.list_(
    pa.struct(
        [("field", pa.string())]
        + [(side, pa.float64()) for side in ("x", "y", "width", "height")]
        + [("slice", pa.int32())]
    )
)

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
    "details": pa.string(),
}


def state_columns(fields: Sequence[str]) -> list[str]:
    """The names of the columns that hold the states of these fields."""
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
    return _cast(column, field)


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        if field.type == WORD and not pa.types.is_dictionary(column.type):
            return pc.dictionary_encode(column.cast(pa.string()))
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise VividError(f"the manifest's column {field.name!r} is {column.type}, not {field.type}: {error}") from error
