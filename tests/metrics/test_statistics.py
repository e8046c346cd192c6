"""Every metric under patient weights, against scikit-learn and counting by hand."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    roc_auc_score,
)

from vivid_monai.metrics import statistics


@pytest.fixture
def case():
    rng = np.random.default_rng(3)
    states = rng.integers(-1, 3, size=200)
    probabilities = np.round(rng.random(200), 2)
    patients = rng.integers(0, 60, size=200)
    return probabilities, states, patients, rng.integers(0, 4, size=(30, 60)), np.isin(states, (0, 1))


def test_f1_equals_sklearn(case):
    probabilities, states, patients, weights, counted = case
    truth, called = states[counted], probabilities[counted] >= 0.37
    expected = [f1_score(truth, called, sample_weight=row[patients][counted]) for row in weights]
    got = statistics.f1(probabilities, states, patients, 0.37)(weights)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_f1_counts_the_threshold_itself_as_present():
    statistic = statistics.f1(np.array([0.5, 0.4]), np.array([1, 0]), np.array([0, 1]), 0.5)
    assert statistic(np.ones((1, 2), int)) == 1


def test_f1_is_not_defined_without_a_class_or_a_threshold(case):
    probabilities, states, patients, weights, _ = case
    assert np.isnan(statistics.f1(probabilities, states, patients, np.nan)(weights)).all()
    only = statistics.f1(np.array([0.9, 0.1]), np.array([1, 0]), np.array([0, 1]), 0.5)
    np.testing.assert_array_equal(only(np.array([[1, 0], [0, 1], [1, 1]])), [np.nan, np.nan, 1])


def test_brier_equals_sklearn(case):
    probabilities, states, patients, weights, counted = case
    expected = [
        brier_score_loss(states[counted], probabilities[counted], sample_weight=row[patients][counted])
        for row in weights
    ]
    np.testing.assert_allclose(statistics.brier(probabilities, states, patients)(weights), expected, rtol=0, atol=1e-12)


def test_calibration_error_equals_counting_by_hand(case):
    probabilities, states, patients, weights, counted = case
    for row, got in zip(weights, statistics.ece(probabilities, states, patients)(weights), strict=True):
        weight = row[patients] * counted
        expected = 0.0
        for b in range(statistics.BINS):
            low, high = b / statistics.BINS, (b + 1) / statistics.BINS
            inside = (probabilities >= low) & ((probabilities < high) | (b == statistics.BINS - 1))
            if weight[inside].sum():
                share = np.average(states[inside] == 1, weights=weight[inside])
                expected += (
                    weight[inside].sum()
                    / weight.sum()
                    * abs(share - np.average(probabilities[inside], weights=weight[inside]))
                )
        assert got == pytest.approx(expected, abs=1e-12)


def test_a_calibrated_answer_has_no_calibration_error_and_a_sure_wrong_one_has_the_largest():
    states, patients = np.array([1, 0, 0, 0]), np.arange(4)
    ones = np.ones((1, 4), int)
    assert statistics.ece(np.full(4, 0.25), states, patients)(ones) == pytest.approx(0)
    assert statistics.ece(np.array([0.0, 1, 1, 1]), states, patients)(ones) == pytest.approx(1)
    assert statistics.calibration_bins(np.array([0, 0.999, 1.0])).tolist() == [0, 14, 14]


def test_what_is_not_answered_may_be_anything(case):
    probabilities, states, patients, weights, counted = case
    spoiled = np.where(counted, probabilities, np.nan)
    for statistic in (statistics.brier, statistics.ece, lambda *parts: statistics.f1(*parts, 0.37)):
        expected = statistic(probabilities, states, patients)(weights)
        np.testing.assert_array_equal(statistic(spoiled, states, patients)(weights), expected)


def test_accuracies_equal_sklearn():
    rng = np.random.default_rng(1)
    truth, predicted, patients = rng.integers(0, 5, 150), rng.integers(0, 5, 150), rng.integers(0, 40, 150)
    weights = rng.integers(1, 4, size=(20, 40))
    for ours, reference in (
        (statistics.accuracy, accuracy_score),
        (statistics.balanced_accuracy, balanced_accuracy_score),
    ):
        expected = [reference(truth, predicted, sample_weight=row[patients]) for row in weights]
        np.testing.assert_allclose(ours(predicted, truth, patients)(weights), expected, rtol=0, atol=1e-12)


def test_balanced_accuracy_leaves_out_a_class_that_a_resample_lost():
    statistic = statistics.balanced_accuracy(np.array([0, 1, 0]), np.array([0, 1, 1]), np.array([0, 1, 2]))
    np.testing.assert_allclose(statistic(np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0]])), [0.75, 0.5, 1])


@pytest.mark.parametrize("decimals", [0, 1, 12], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("block", [1, 1 << 20], ids=["row by row", "at once"])
def test_equals_sklearn_with_sample_weights(decimals, block, monkeypatch):
    monkeypatch.setattr(statistics, "_BLOCK", block)
    rng = np.random.default_rng(decimals)
    states = rng.integers(-1, 3, size=120)
    scores = np.round(rng.normal(size=120) + (states == 1), decimals)
    patients = rng.integers(0, 40, size=120)
    weights = rng.integers(0, 4, size=(25, 40))
    counted = np.isin(states, (0, 1))
    for ours, reference in ((statistics.auroc, roc_auc_score), (statistics.ap, average_precision_score)):
        got = ours(scores, states, patients)(weights)
        expected = [
            reference(states[counted], scores[counted], sample_weight=row[patients][counted]) for row in weights
        ]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", [statistics.auroc, statistics.ap])
def test_weights_that_leave_one_class_give_nan(metric):
    statistic = metric(np.array([0.1, 0.9, 0.4]), np.array([0, 1, 1]), np.array([0, 1, 2]))
    weights = np.array([[1, 1, 0], [0, 1, 1], [3, 0, 0], [2, 0, 5]])
    np.testing.assert_array_equal(statistic(weights), [1, np.nan, np.nan, 1])


def test_a_field_without_answers_is_nan_in_every_resample():
    statistic = statistics.auroc(np.zeros(3), np.array([-1, 2, -1]), np.arange(3))
    assert np.isnan(statistic(np.ones((4, 3), dtype=int))).all()
