"""Run the UMS verifier over a whole table: each distinct value and combination of states once, the rest row by row."""

import numpy as np
import pandas as pd
import pyarrow as pa

from vivid_monai.data.columns import conform, record_of, state_columns
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.schema import Violation, load_schema, schema_violations
from vivid_monai.ums.states import NULL, STATES
from vivid_monai.ums.verify import state_violations, verify

CONTRADICTIONS = frozenset({"hierarchy", "no-finding", "exclusive"})
"""What states say against each other. Whether such rows are kept is the user's choice."""

_STATE = {NULL: None, **dict(enumerate(STATES))}


def contradictions(table: pd.DataFrame, space: LabelSpace) -> pd.Series:
    """For each contradictory row, by its index label, the list of its violations of `CONTRADICTIONS`.

    ``table``: its columns ``finding.…`` hold int8 codes of the states of the label space's fields.
    """
    states = np.ascontiguousarray(table[state_columns(space.fields)].to_numpy(np.int8))
    keys = states.view(np.dtype((np.void, states.shape[1]))).ravel()
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    found = {}
    for combination, row in enumerate(states[first].tolist()):
        words = {field: _STATE[code] for field, code in zip(space.fields, row, strict=True)}
        if violations := list(state_violations(words, space)):
            found[combination] = violations
    contradictory = np.isin(which, list(found))
    return pd.Series([found[c] for c in which[contradictory].tolist()], table.index[contradictory], dtype=object)


def invalid_rows(table: pd.DataFrame, space: LabelSpace) -> dict[int, Violation]:
    """The first violation of each row that has one beside `CONTRADICTIONS`, by the row's index label.

    ``table`` has the manifest's columns; ``split`` may still be open.
    """
    bad: dict[int, Violation] = {}
    for name in table.columns:
        if (path := _place(name)) is None:
            continue
        column, rule = table[name], load_schema(path)
        # Of millions of texts, all that is asked is that there be one.
        is_text = rule.get("type") == "string" and rule.keys() <= {"type", "minLength", "description"}
        for value in [""] if is_text else column.dropna().unique().tolist():
            for violation in schema_violations(value, path)[:1]:
                for row in table.index[(column == value).to_numpy(bool, na_value=False)]:
                    bad.setdefault(row, violation)
    whole = [table[name].notna() for name in ("boxes", "details", "slices") if name in table]
    if whole and (chosen := np.logical_or.reduce(whole)).any():
        part = table[chosen].assign(split="train")  # the verifier asks for no split, the manifest's form does
        for row, values in zip(part.index, conform(to_arrow(part), space.fields).to_pylist(), strict=True):
            for violation in verify(record_of(values, space), space):
                if violation.code not in CONTRADICTIONS:
                    bad.setdefault(row, violation)
    return bad


def to_arrow(table: pd.DataFrame) -> pa.Table:
    """The table in Arrow's types."""
    return pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()


def _place(column: str) -> tuple[str, ...] | None:
    """Where the schema of records has a manifest's column: ("age",), ("image", "height") …; ``None``: nowhere."""
    if column == "image":
        return ("image", "path")
    paths = ((column,), ("image", column), ("provenance", column))
    return next((path for path in paths if column in load_schema(path[:-1])["properties"]), None)
