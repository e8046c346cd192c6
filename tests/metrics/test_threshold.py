"""The threshold that is chosen on validation."""

import numpy as np
from sklearn.metrics import f1_score

from vivid_monai.metrics.masked import best_f1_thresholds


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
