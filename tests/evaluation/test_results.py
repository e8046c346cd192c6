"""Results and predictions on disk."""

import json

import numpy as np
import pytest

from tests.evaluation.scored import FIELDS, classes, findings, measured
from vivid_monai.errors import VividError
from vivid_monai.evaluation.results import Results, Row, read_predictions, write_predictions
from vivid_monai.metrics.masked import masked_auroc


@pytest.mark.parametrize("kind", ["findings", "classes"])
def test_come_back_as_they_were(tmp_path, kind):
    scored, test = findings() if kind == "findings" else classes()
    results = measured(scored, test, **({} if kind == "findings" else {"fields": ["a", "b", "c"], "exclusive": True}))
    results.run["command"] = "python -m monai.bundle run evaluating"
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_numbers_that_are_not_defined_are_null(tmp_path):
    scored, test = findings()
    test.states[:, 0] = 0
    known = 7
    test.states[:known, 0] = -1
    measured(scored, test).save(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    rows = [row for row in json.loads(text)["rows"] if row[:3] == ["auroc", "Edema", "good"]]
    assert rows == [["auroc", "Edema", "good", seed, None, None, None, 300 - known, ""] for seed in (None, 0)]


def test_a_number_that_json_does_not_have_is_never_written(tmp_path):
    scored, test = findings()
    scored["good"].probes[0]["loss"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        measured(scored, test).save(tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []


def test_holds_no_image_and_no_patient(tmp_path):
    scored, test = findings()
    measured(scored, test).save(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert not any(f'"{key}"' in text for key in (*test.ids[:20], *test.patients[:20]))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "no results of this version"),
        ('{"format": "vivid-evaluation", "version": 3}', "version 3"),
        ('{"format": "vivid-evaluation", "version": 1}', "not complete"),
        ('{"format": "vivid-evaluation", "version": 2}', "not complete"),
        ('{"format": "vivid-evaluation", "version": 1, "encoders": {"a": "text"}}', "not complete"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, told):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(VividError, match=told) as error:
        Results.load(path)
    assert str(path) in str(error.value)


def test_an_interval_holds_zero_or_does_not():
    row = Row("auroc", "(macro)", "a", None, 0.1, minus="b")
    assert row.holds_zero
    assert row._replace(low=-0.1, high=0.3).holds_zero
    assert not row._replace(low=0.01, high=0.3).holds_zero


def test_predictions_come_back_as_they_were(tmp_path):
    scored, test = findings(seeds=(0, 5))
    scores = {"LM teacher": scored["good"].test, "no, LM": scored["poor"].test}
    write_predictions(tmp_path / "p.csv", test, FIELDS, scores, seeds=[0, 5])
    got = read_predictions(tmp_path / "p.csv")
    assert (got.fields, got.seeds, list(got.scores)) == (FIELDS, [0, 5], ["LM teacher", "no, LM"])
    assert got.ids.tolist() == test.ids.tolist()
    assert got.patients.tolist() == test.patients.tolist()
    np.testing.assert_array_equal(got.states, test.states)
    for name, values in scores.items():
        np.testing.assert_array_equal(got.scores[name], values)
        np.testing.assert_allclose(masked_auroc(got.scores[name][1], got.states), masked_auroc(values[1], test.states))


def test_fields_may_hold_whatever_the_columns_are_told_apart_by(tmp_path):
    scored, test = findings(seeds=(0, 5))
    fields = ['Nodule: left@3, "old"', "state:x", "@"]
    write_predictions(tmp_path / "p.csv", test, fields, {"a": scored["good"].test}, seeds=[0, 5])
    got = read_predictions(tmp_path / "p.csv")
    assert (got.fields, got.seeds, list(got.scores)) == (fields, [0, 5], ["a"])
    np.testing.assert_array_equal(got.scores["a"], scored["good"].test)


def test_a_broken_table_of_predictions_is_named(tmp_path):
    (tmp_path / "p.csv").write_text("id,patient_id,state:A,x@0:A\n1,2,present,often\n")
    with pytest.raises(VividError, match=r"p\.csv: no table of predictions"):
        read_predictions(tmp_path / "p.csv")
    with pytest.raises(VividError, match=r"none\.csv"):
        read_predictions(tmp_path / "none.csv")
