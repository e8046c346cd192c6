"""The table of predictions, from which every number can be computed again."""

import numpy as np
import pytest

from tests.evaluation.scored import FIELDS, findings
from vivid_monai.errors import VividError
from vivid_monai.evaluation.predictions import read_predictions, write_predictions
from vivid_monai.metrics.masked import masked_auroc


def test_comes_back_as_it_was(tmp_path):
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


def test_a_broken_table_is_named(tmp_path):
    (tmp_path / "p.csv").write_text("id,patient_id,state:A,x@0:A\n1,2,present,often\n")
    with pytest.raises(VividError, match=r"p\.csv: no table of predictions"):
        read_predictions(tmp_path / "p.csv")
    with pytest.raises(VividError, match=r"none\.csv"):
        read_predictions(tmp_path / "none.csv")
