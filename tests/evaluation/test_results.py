"""Results on disk."""

import json

import pytest

from tests.evaluation.scored import classes, findings, measured
from vivid_monai.errors import VividError
from vivid_monai.evaluation.results import Estimate, Results


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
    measured(scored, test).save(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["encoders"]["good"]["fields"]["Edema"]["auroc"] == {
        "value": None,
        "low": None,
        "high": None,
        "per_seed": [None],
    }


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
        ('{"format": "vivid-evaluation", "version": 2}', "version 2"),
        ('{"format": "vivid-evaluation", "version": 1}', "not complete"),
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
    assert Estimate(0.1, -0.1, 0.3).holds_zero
    assert not Estimate(0.1, 0.01, 0.3).holds_zero
    assert Estimate(0.1).holds_zero
