"""Masked AUROC and AP against counting by hand, and the macro's exclusions."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from vivid_monai.errors import VividError
from vivid_monai.metrics.masked import (
    best_f1_thresholds,
    check_scores,
    counts,
    macro,
    masked_auroc,
    masked_average_precision,
)


def auroc_by_pairs(scores, states):
    wins = [(p > a) + 0.5 * (p == a) for p in scores[states == 1] for a in scores[states == 0]]
    return np.mean(wins) if wins else np.nan


def precision_by_steps(scores, states):
    """Σ (recall_k − recall_{k−1}) · precision_k over descending thresholds."""
    answered = (states == 0) | (states == 1)
    scores, truth = scores[answered], states[answered] == 1
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        now = truth[chosen].sum() / truth.sum()
        total, recall = total + (now - recall) * truth[chosen].mean(), now
    return total


@pytest.fixture
def labelled():
    rng = np.random.default_rng(5)
    states = rng.integers(-1, 3, size=(80, 6))
    scores = np.round(rng.normal(size=states.shape) + 0.7 * (states == 1), 1)  # rounding makes ties
    return scores, states


def test_masked_metrics_equal_counting_by_hand(labelled):
    scores, states = labelled
    assert len(np.unique(scores[:, 0])) < len(scores), "the case must hold ties"
    pairs = [auroc_by_pairs(scores[:, f], states[:, f]) for f in range(6)]
    steps = [precision_by_steps(scores[:, f], states[:, f]) for f in range(6)]
    np.testing.assert_allclose(masked_auroc(scores, states), pairs, rtol=0, atol=1e-12)
    np.testing.assert_allclose(masked_average_precision(scores, states), steps, rtol=0, atol=1e-12)


def test_unanswerable_and_uncertain_scores_change_nothing(labelled):
    scores, states = labelled
    before = masked_auroc(scores, states), masked_average_precision(scores, states)
    ignored = (states == -1) | (states == 2)
    scores[ignored] = np.nan
    np.testing.assert_array_equal(masked_auroc(scores, states), before[0])
    np.testing.assert_array_equal(masked_average_precision(scores, states), before[1])


def test_a_field_without_one_of_the_classes_is_nan():
    states = np.array([[1, 0, -1, 1], [1, 0, -1, 0], [-1, 2, 2, 2]])
    for metric in (masked_auroc, masked_average_precision):
        values = metric(np.arange(12.0).reshape(3, 4), states)
        assert np.isnan(values[:3]).all()
        assert not np.isnan(values[3])


def test_counts_are_per_field():
    present, absent = counts(np.array([[1, 0, -1], [1, 2, 0], [0, 0, -1]]))
    assert present.tolist() == [2, 0, 0]
    assert absent.tolist() == [1, 2, 1]


def test_macro_keeps_fields_from_the_minimum_on_with_a_value():
    values = [0.9, 0.7, 0.1, 0.2, np.nan]
    assert macro(values, [10, 500, 9, 500, 500], [500, 10, 500, 9, 500]) == pytest.approx(0.8)
    assert np.isnan(macro([0.9], [9], [500]))


@pytest.mark.parametrize(
    ("scores", "states", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 1)), r"\(3, 2\) and states \(3, 1\)"),
        (np.zeros(3), np.zeros(3), "one shape"),
        (np.zeros((2, 1)), np.array([[0], [3]]), "other codes"),
        (np.zeros((2, 1)), np.array([[0], [np.nan]]), "other codes"),
        (np.array([[0.0], [np.nan]]), np.array([[0], [1]]), "row 1, field 0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(scores, states, message):
    with pytest.raises(VividError, match=message):
        check_scores(scores, states)


def test_no_threshold_has_a_higher_f1():
    rng = np.random.default_rng(0)
    states = rng.integers(-1, 3, size=(90, 5))
    scores = np.round(np.clip(rng.normal(0.4 + 0.2 * (states == 1), 0.2), 0, 1), 2)
    for field, threshold in enumerate(best_f1_thresholds(scores, states)):
        counted = np.isin(states[:, field], (0, 1))
        truth, score = states[counted, field], scores[counted, field]
        best = max(f1_score(truth, score >= t) for t in np.unique(score))
        assert f1_score(truth, score >= threshold) == best


def test_lies_midway_and_is_the_highest_of_equal_ones():
    scores = np.array([[0.1], [0.3], [0.5], [0.9]])
    assert best_f1_thresholds(scores, np.array([[0], [0], [1], [1]])) == [0.4]
    # From 0.3 on: 2 of 3 called are right; from 0.9 on: 1 of 2 found. Both have F1 = 0.8 and 0.667.
    assert best_f1_thresholds(scores, np.array([[0], [1], [0], [1]])) == [0.2]


def test_equal_f1_takes_the_fewest_alarms():
    scores = np.array([[0.1], [0.4], [0.6], [0.8]])
    states = np.array([[1], [0], [0], [1]])  # all present: F1 2/3; only the top one: F1 2/3
    assert best_f1_thresholds(scores, states) == [0.7]


def test_scores_that_differ_in_their_last_digit_are_told_apart():
    for low in (0.5, 0.25, 0.7):
        scores = np.array([low, np.nextafter(low, 1)])
        (threshold,) = best_f1_thresholds(scores[:, None], np.array([[0], [1]]))
        assert (scores >= threshold).tolist() == [False, True]


def test_a_field_with_one_class_has_none():
    got = best_f1_thresholds(np.full((3, 2), 0.5), np.array([[1, -1], [1, 0], [2, 1]]))
    assert np.isnan(got[0])
    assert not np.isnan(got[1])
