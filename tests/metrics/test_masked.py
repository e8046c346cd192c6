"""Masked AUROC and AP against counting by hand, and the macro's exclusions."""

import numpy as np
import pytest

from vivid_monai.errors import VividError
from vivid_monai.metrics.masked import check_scores, counts, macro, masked_auroc, masked_average_precision


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


def test_macro_keeps_fields_from_the_minimum_on_and_names_the_others():
    values = [0.9, 0.7, 0.1, 0.2, np.nan]
    mean, excluded = macro(values, [10, 500, 9, 500, 500], [500, 10, 500, 9, 500])
    assert mean == pytest.approx(0.8)
    assert excluded == (2, 3, 4)


def test_macro_of_nothing_is_nan():
    mean, excluded = macro([0.9], [9], [500])
    assert np.isnan(mean)
    assert excluded == (0,)


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
