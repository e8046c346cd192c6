"""Two encoders on the same test images: the numbers, their table, and the file they can be computed from again."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vivid_monai.errors import VividError
from vivid_monai.evaluation.comparison import compare
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.head import LinearHead
from vivid_monai.evaluation.predictions import write_predictions
from vivid_monai.evaluation.summary import print_summary, summary_table

FIELDS = ["Edema", "Fracture", "Hernia"]


def make_results(n: int = 120) -> dict[str, tuple[LinearHead, Features]]:
    rng = np.random.default_rng(0)
    states = rng.integers(-1, 3, (n, 3))
    states[:, 2] = np.where(rng.random(n) < 0.02, 1, 0)  # too few to count
    ids = np.array([f"image-{i}" for i in range(n)])
    patients = np.array([f"patient-{i // 2}" for i in range(n)])
    results = {}
    for name, strength in (("pretrained", 2.0), ("untrained", 0.3)):
        x = (rng.normal(size=(n, 3)) + strength * (states == 1)).astype(np.float32)
        head = LinearHead(np.eye(3), np.zeros(3), 0.1, {0.1: 0.5}, (2,) if name == "untrained" else ())
        results[name] = head, Features(x, states, patients, ids, (("broken.png", "truncated"),))
    return results


def test_numbers_are_those_of_the_scores():
    results = make_results()
    comparison = compare(results, FIELDS, n_resamples=200)
    _, test = results["pretrained"]
    rows = np.isin(test.states[:, 0], (0, 1))
    expected = roc_auc_score(test.states[rows, 0] == 1, test.x[rows, 0])
    got = comparison.encoders["pretrained"]
    assert got.auroc["Edema"] == pytest.approx(expected)
    low, high = got.interval["Edema"]
    assert low < expected < high
    assert comparison.macro_fields == ["Edema", "Fracture"]
    assert comparison.excluded == ["Hernia"]
    assert got.macro_auroc == pytest.approx((got.auroc["Edema"] + got.auroc["Fracture"]) / 2)
    difference, (low, high) = comparison.difference
    assert difference == pytest.approx(got.macro_auroc - comparison.encoders["untrained"].macro_auroc)
    assert 0 < low < difference < high
    assert comparison.n_patients == 60
    assert comparison.n_present["Hernia"] + comparison.n_absent["Hernia"] == 120


def test_the_table_says_what_is_left_out_and_why(tmp_path, capsys):
    comparison = compare(make_results(), FIELDS, n_resamples=50)
    table = summary_table(comparison)
    assert "Hernia *" in table
    assert "left out of the macro average: Hernia" in table
    assert "untrained: no head (one class in training) for Hernia" in table
    assert "1 unreadable images left out" in table
    print_summary(comparison, tmp_path, tmp_path / "model.pt")
    assert f"tensorboard --logdir {tmp_path}" in capsys.readouterr().out


def test_predictions_hold_what_the_numbers_are_made_of(tmp_path):
    results = make_results()
    write_predictions(tmp_path / "predictions.csv", results, FIELDS)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    _, test = results["pretrained"]
    words = {-1: "", 0: "absent", 1: "present", 2: "uncertain"}
    assert [row["state:Edema"] for row in rows] == [words[code] for code in test.states[:, 0]]
    probabilities = np.array([float(row["pretrained:Edema"]) for row in rows])
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-test.x[:, 0])), rtol=1e-4)


def test_other_images_or_too_few_are_refused():
    results = make_results()
    head, test = results["untrained"]
    with pytest.raises(ValueError, match="same images"):
        compare({**results, "untrained": (head, replace(test, ids=test.ids[::-1]))}, FIELDS)
    with pytest.raises(VividError, match="too small to test on"):
        compare(results, FIELDS, min_present=500)
