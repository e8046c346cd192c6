"""The UMS verifier over a whole table: once for each distinct combination of values, with the result of row by row.

What `verify` says of a record falls into parts that look at few values each. The schema judges every value by itself;
what fields say against each other depends on the states alone; the rest needs boxes, details or slices. So each
distinct value is tried once in an otherwise sound record, each distinct combination of states once against the label
space, and rows that have boxes, details or slices go through the verifier whole.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.data.columns import conform, record_of
from vivid_monai.ums import verify as findings
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.record import Finding, ImageInfo, Provenance, Record
from vivid_monai.ums.schema import Violation
from vivid_monai.ums.states import decode
from vivid_monai.ums.verify import verify

FREE_TEXT = frozenset(
    {
        "id",
        "patient_id",
        "study_id",
        "report",
        "image",
        "dataset",
        "labeller",
        "labeller_version",
        "report_ref",
        "reader",
    }
)
_ON_RECORD = ("id", "patient_id", "study_id", "modality", "anatomy", "view", "sex", "age", "report")
_ON_IMAGE = ("height", "width", "slice", "slices")
_ON_PROVENANCE = ("dataset", "labeller", "labeller_version", "source", "report_ref", "reader")


def contradictions(states: np.ndarray, space: LabelSpace) -> list[tuple[np.ndarray, list[Violation]]]:
    """What the states of a row say against each other (hierarchy, No Finding, exclusive fields).

    Args:
        states: int8 (N, F) in the order of the label space's fields.

    Returns:
        For each contradictory combination, the rows (int, sorted) that have it and its violations.
    """
    if not states.size:
        return []
    keys = np.ascontiguousarray(states, dtype=np.int8).view(np.dtype((np.void, states.shape[1]))).ravel()
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    words = {code: {"state": decode(code)} for code in (-1, 0, 1, 2)}
    found = {}
    for combination, row in enumerate(first):
        answers = {field: words[code] for field, code in zip(space.fields, states[row].tolist(), strict=True)}
        if violations := list(findings.sets(answers, space)):
            found[combination] = violations
    if not found:
        return []
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which))
    return [(order[ends[c - 1] if c else 0 : ends[c]], violations) for c, violations in found.items()]


def invalid_rows(table: pa.Table, space: LabelSpace) -> dict[int, Violation]:
    """Everything else that the verifier says: row → its first violation that is no contradiction between states.

    ``table`` has the manifest's columns; ``split`` may still be open.
    """
    table = conform(_with_split(table), space.fields)
    bad: dict[int, Violation] = {}
    for name in (*_ON_RECORD, *_ON_IMAGE, *_ON_PROVENANCE, "image"):
        for value, violation in _bad_values(table[name], name):
            for row in np.flatnonzero(pc.fill_null(pc.equal(table[name], value), False).to_numpy()).tolist():
                bad.setdefault(row, violation)
    whole = pc.or_(pc.or_(pc.is_valid(table["boxes"]), pc.is_valid(table["details"])), pc.is_valid(table["slices"]))
    for row in np.flatnonzero(whole.to_numpy()).tolist():
        record = record_of(table.slice(row, 1).to_pylist()[0], space)
        of_states = {v.code for v in findings.sets({f: {"state": x.state} for f, x in record.findings.items()}, space)}
        for violation in verify(record, space):
            if violation.code not in of_states:
                bad.setdefault(row, violation)
    return bad


def _with_split(table: pa.Table) -> pa.Table:
    """The split is not the verifier's business, but `conform` wants one."""
    table = table.drop_columns(["split"]) if "split" in table.column_names else table
    return table.append_column(
        "split", pa.DictionaryArray.from_arrays(np.zeros(table.num_rows, dtype=np.int32), ["train"])
    )


def _bad_values(column: pa.ChunkedArray, name: str) -> Iterator[tuple[Any, Violation]]:
    """Distinct values of a column that break the schema."""
    if name in FREE_TEXT:
        # Of free text the schema asks at most that there be some.
        values = [""] if pc.any(pc.equal(column, "")).as_py() else []
    elif pa.types.is_dictionary(column.type):
        values = pc.unique(column).to_pylist()
    else:
        # Allowed numbers are a range: where the extremes are inside, so is what is between them.
        values = list(pc.min_max(column).as_py().values())
        if any(_violation(name, value) for value in values):
            values = pc.unique(column).to_pylist()
    for value in values:
        if value is not None and (violation := _violation(name, value)):
            yield value, violation


def _violation(name: str, value: Any) -> Violation | None:
    if value is None:
        return None
    record = Record(
        id="id",
        patient_id="patient",
        image=ImageInfo("image"),
        modality="DX",
        anatomy="chest",
        view=None,
        findings={"field": Finding(None)},
        provenance=Provenance("dataset", "labeller", None, "human"),
    )
    if name == "image":
        record = replace(record, image=ImageInfo(str(value)))
    elif name in _ON_IMAGE:
        record = replace(record, image=replace(record.image, **{name: value}))
    elif name in _ON_PROVENANCE:
        record = replace(record, provenance=replace(record.provenance, **{name: value}))
    else:
        record = replace(record, **{name: value})
    return next(iter(verify(record)), None)
