"""The linear head: an optimum, masked, standardised, its strength chosen on validation rows."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.head import fit_head


def make_features(n: int = 300, d: int = 8, f: int = 3, seed: int = 0, blanks: float = 0.3) -> Features:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + rng.normal(size=d)
    states = (x @ np.random.default_rng(99).normal(size=(d, f)) + rng.logistic(size=(n, f)) * 3 > 0).astype(np.int64)
    states[rng.random((n, f)) < blanks] = -1
    states[rng.random((n, f)) < 0.1] = 2
    ids = np.array([f"{seed}-{i}" for i in range(n)])
    return Features(x.astype(np.float32), states, ids, ids)


def test_equals_scikit_learn_on_the_answerable_rows():
    train, validation = make_features(seed=1), make_features(seed=2)
    strength = 0.01
    head = fit_head(train, validation, strengths=[strength])
    x = np.asarray(train.x, np.float64)
    z = (x - x.mean(0)) / x.std(0)
    for f in range(3):
        rows = np.isin(train.states[:, f], (0, 1))
        reference = LogisticRegression(C=1 / (strength * rows.sum()), tol=1e-10, max_iter=5000)
        reference.fit(z[rows], train.states[rows, f] == 1)
        np.testing.assert_allclose(head.logits(x)[:, f], reference.decision_function(z), atol=2e-3)


def test_chooses_the_strength_with_the_lowest_validation_loss():
    head = fit_head(make_features(n=60, d=40, seed=1), make_features(n=200, d=40, seed=2))
    assert head.strength == min(head.validation_loss, key=head.validation_loss.__getitem__)
    assert head.strength not in (min(head.validation_loss), max(head.validation_loss)), "the grid brackets the optimum"


def test_uncertain_and_unanswerable_rows_change_nothing():
    train, validation = make_features(seed=1), make_features(seed=2)
    head = fit_head(train, validation, strengths=[0.1])
    states = train.states.copy()
    states[states == 2] = -1
    again = fit_head(Features(train.x, states, train.patients, train.ids), validation, strengths=[0.1])
    np.testing.assert_array_equal(head.weight, again.weight)


def test_a_field_with_one_class_gets_no_weights_and_is_named():
    train, validation = make_features(seed=1), make_features(seed=2)
    train.states[:, 1] = np.where(train.states[:, 1] == 1, 0, train.states[:, 1])
    head = fit_head(train, validation)
    assert head.untrained == (1,)
    assert not head.weight[1].any()
    assert head.weight[0].any()


def test_a_constant_feature_is_ignored():
    train, validation = make_features(seed=1), make_features(seed=2)
    train.x[:, 3] = validation.x[:, 3] = 7.0
    head = fit_head(train, validation)
    assert np.isfinite(head.weight).all()
    assert not head.weight[:, 3].any()


def test_nothing_to_learn_from_is_an_error():
    train, validation = make_features(seed=1), make_features(seed=2)
    train.states[:] = -1
    with pytest.raises(VividError, match="no field has both"):
        fit_head(train, validation)
    train, validation = make_features(seed=1), make_features(seed=2)
    validation.states[:] = 2
    with pytest.raises(VividError, match="cannot be chosen"):
        fit_head(train, validation)
