"""Validation by distinct values finds what the verifier finds row by row."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from vivid_monai.data.columns import conform, manifest_schema, record_of, state_columns
from vivid_monai.prepare import validate
from vivid_monai.prepare.validate import CONTRADICTIONS, _place, contradictions, invalid_rows
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.schema import load_schema
from vivid_monai.ums.verify import verify


def frame(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype()}.get)


def random_table(space, n: int, seed: int) -> pa.Table:
    """Rows with random states; about one in five values elsewhere breaks the schema."""
    rng = np.random.default_rng(seed)

    def some(good, bad):
        return [rng.choice(np.array(bad if rng.random() < 0.05 else good, dtype=object)) for _ in range(n)]

    boxes = [
        [
            {
                "field": space.fields[0],
                "x": float(rng.integers(-5, 20)),
                "y": 0.0,
                "width": 5.0,
                "height": 5.0,
                "slice": None,
            }
        ]
        if rng.random() < 0.2
        else None
        for _ in range(n)
    ]
    details = [json.dumps({space.fields[1]: {"severity": s}}) if s else None for s in some([None, "mild"], ["awful"])]
    slices = some([None, 4], [0])
    columns = {
        "id": some(["a", "b"], [""]),
        "image": some(["a.png"], [""]),
        "patient_id": some(["p", "q"], [""]),
        "study_id": some(["s", None], [""]),
        "split": ["train"] * n,
        "modality": some(["DX", "CT"], ["XX"]),
        "anatomy": some(["chest"], ["chst"]),
        "view": some(["PA", None], ["up"]),
        "sex": some(["F", "M", None], ["X"]),
        "age": some([1.0, 130.0, None], [-1.0, -2.0, 131.0, 140.0]),
        "height": some([20, None], [0]),
        "width": some([20, None], [-3]),
        "slice": some([None, None, None, 2, 6], [-1]),
        "slices": slices,
        "dataset": some(["d"], [""]),
        "labeller": some(["l"], [""]),
        "source": some(["human"], ["hearsay"]),
        "boxes": boxes,
        "details": details,
    }
    states = rng.choice(np.array([-1, -1, 0, 1, 2], dtype=np.int8), (n, len(space.fields)))
    columns |= {name: states[:, i] for i, name in enumerate(state_columns(space.fields))}
    return conform(pa.table(columns), space.fields)


@pytest.mark.parametrize("name", ["chexpert-14", "organamnist-11", "nih-14"])
def test_the_verdict_is_that_of_the_verifier_row_by_row(name):
    space = load_label_space(name)
    table = random_table(space, 150, seed=5)
    found = [verify(record_of(row, space), space) for row in table.to_pylist()]

    expected = {
        i: {v.code for v in vs} & CONTRADICTIONS for i, vs in enumerate(found) if {v.code for v in vs} & CONTRADICTIONS
    }
    ours = contradictions(frame(table), space)
    assert {row: {v.code for v in violations} for row, violations in ours.items()} == expected

    others = {i: {(v.pointer, v.code) for v in vs} for i, vs in enumerate(found)}
    others = {i: {pair for pair in pairs if pair[1] not in CONTRADICTIONS} for i, pairs in others.items()}
    ours = invalid_rows(frame(table), space)
    assert set(ours) == {i for i, pairs in others.items() if pairs}
    assert all((violation.pointer, violation.code) in others[i] for i, violation in ours.items())
    assert 10 < len(ours) < 150


def test_each_combination_is_looked_at_once(monkeypatch):
    space = load_label_space("chexpert-14")
    table = pd.DataFrame(-1, index=[5, 6, 7, 8], columns=state_columns(space.fields), dtype="int8")
    table.loc[[6, 8], "finding.Edema"], table.loc[[6, 8], "finding.Lung Opacity"] = 1, 0
    calls = []
    real = validate.state_violations
    monkeypatch.setattr(validate, "state_violations", lambda *a: calls.append(a) or real(*a))
    found = contradictions(table, space)
    assert found.index.tolist() == [6, 8]
    assert [[v.code for v in violations] for violations in found] == [["hierarchy"]] * 2
    assert len(calls) == 2
    assert contradictions(table[:0], space).empty


def test_the_schema_judges_the_value_of_a_column_by_itself():
    # What makes trying distinct values one by one the same as trying whole records.
    words = {"if", "then", "dependentRequired", "dependentSchemas", "oneOf", "anyOf", "allOf", "not"}
    top = load_schema()
    assert not any(words & part.keys() for part in (top, top["properties"]["image"], top["properties"]["provenance"]))
    places = {name: _place(name) for name in manifest_schema([]).names}
    assert {name for name, place in places.items() if place is None} == {"split", "boxes", "mask", "details"}
    assert (places["image"], places["height"], places["reader"]) == (
        ("image", "path"),
        ("image", "height"),
        ("provenance", "reader"),
    )


def test_numbers_between_the_extremes_are_found_too():
    space = load_label_space("chexpert-14")
    table = random_table(space, 5, seed=0)
    sound = {"id": "a", "image": "a.png", "patient_id": "p", "study_id": "s", "modality": "DX", "anatomy": "chest"}
    sound |= {"view": None, "sex": None, "height": 20, "width": 20, "slice": None, "slices": None, "dataset": "d"}
    sound |= {"labeller": "l", "source": "human", "boxes": None, "details": None}
    rows = [
        {**row, **sound, "age": age}
        for row, age in zip(table.to_pylist(), [-2.0, -1.0, 5.0, 131.0, 140.0], strict=True)
    ]
    assert set(invalid_rows(frame(pa.Table.from_pylist(rows, schema=table.schema)), space)) == {0, 1, 3, 4}
