"""The vectorised weighted AUROC and average precision against scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from vivid_monai.metrics import statistics as weighted
from vivid_monai.metrics.statistics import RankedField


@pytest.mark.parametrize("decimals", [0, 1, 12], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("block", [1, 1 << 20], ids=["row by row", "at once"])
def test_equals_sklearn_with_sample_weights(decimals, block, monkeypatch):
    monkeypatch.setattr(weighted, "_BLOCK", block)
    rng = np.random.default_rng(decimals)
    states = rng.integers(-1, 3, size=120)
    scores = np.round(rng.normal(size=120) + (states == 1), decimals)
    patients = rng.integers(0, 40, size=120)
    weights = rng.integers(0, 4, size=(25, 40))
    field = RankedField(scores, states, patients)
    counted = np.isin(states, (0, 1))
    for got, reference in ((field.auroc, roc_auc_score), (field.average_precision, average_precision_score)):
        expected = [
            reference(states[counted], scores[counted], sample_weight=row[patients][counted]) for row in weights
        ]
        np.testing.assert_allclose(got(weights), expected, rtol=0, atol=1e-12)


def test_weights_that_leave_one_class_give_nan():
    field = RankedField(np.array([0.1, 0.9, 0.4]), np.array([0, 1, 1]), np.array([0, 1, 2]))
    weights = np.array([[1, 1, 0], [0, 1, 1], [3, 0, 0], [2, 0, 5]])
    for metric in (field.auroc, field.average_precision):
        np.testing.assert_array_equal(metric(weights), [1, np.nan, np.nan, 1])


def test_a_field_without_answers_is_nan_in_every_resample():
    field = RankedField(np.zeros(3), np.array([-1, 2, -1]), np.arange(3))
    assert np.isnan(field.auroc(np.ones((4, 3), dtype=int))).all()
