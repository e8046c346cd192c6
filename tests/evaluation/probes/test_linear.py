"""The linear probe: scikit-learn's optimum, masked, standardised, its strengths chosen on validation rows."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.evaluation.made_features import classes, findings
from vivid_monai.errors import VividError
from vivid_monai.evaluation.probes import linear
from vivid_monai.evaluation.probes.linear import STRENGTHS, Axes, LinearProbe, fit_linear, sigmoid_loss, softmax_loss

pytestmark = pytest.mark.numeric


def standardised(part, train):
    x = np.asarray(train.x, np.float64)
    return (part.x - x.mean(0)) / x.std(0)


def reference(strength: float, n: int) -> LogisticRegression:
    """The same objective: C weighs the sum of the losses, our strength their mean."""
    return LogisticRegression(C=1 / (strength * n), tol=1e-12, max_iter=100_000)


@pytest.mark.parametrize("blanks", [0.0, 0.4], ids=["complete", "gaps"])
@pytest.mark.parametrize("strength", [1e-5, 1e-2, 10.0])
def test_each_field_equals_scikit_learn_on_its_answered_rows(blanks, strength):
    train, validation = findings(seed=1, blanks=blanks), findings(seed=2, blanks=blanks)
    probe = fit_linear(train, validation, strengths=[strength])
    for f in range(3):
        rows = np.isin(train.states[:, f], (0, 1))
        sklearn = reference(strength, rows.sum()).fit(standardised(train, train)[rows], train.states[rows, f] == 1)
        expected = sklearn.decision_function(standardised(validation, train))
        np.testing.assert_allclose(probe.logits(validation.x)[:, f], expected, atol=1e-4)
        p = sklearn.predict_proba(standardised(validation, train))[:, 1]
        np.testing.assert_allclose(probe.probabilities(validation.x)[:, f], p, atol=1e-5)


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 10.0])
def test_classes_equal_scikit_learns_multinomial(strength):
    train, validation = classes(seed=1), classes(seed=2)
    probe = fit_linear(train, validation, exclusive=True, strengths=[strength])
    sklearn = reference(strength, len(train.x)).fit(standardised(train, train), train.states.argmax(1))
    z = standardised(validation, train)
    np.testing.assert_allclose(probe.probabilities(validation.x), sklearn.predict_proba(z), atol=1e-5)
    logits, expected = probe.logits(validation.x), sklearn.decision_function(z)
    centred = [part - part.mean(1, keepdims=True) for part in (logits, expected)]
    np.testing.assert_allclose(*centred, atol=1e-4)
    np.testing.assert_allclose(probe.probabilities(validation.x).sum(1), 1)


def test_more_features_than_rows():
    train, validation = findings(n=40, d=100, seed=1, blanks=0), findings(n=40, d=100, seed=2, blanks=0)
    probe = fit_linear(train, validation, strengths=[0.01])
    sklearn = reference(0.01, 40).fit(standardised(train, train), train.states[:, 0])
    expected = sklearn.decision_function(standardised(validation, train))
    np.testing.assert_allclose(probe.logits(validation.x)[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_slopes_are_the_derivatives_of_the_losses(loss):
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(5, 3)), np.eye(3)[rng.integers(0, 3, 5)]
    slope = loss(logits, target)[1]
    for index in np.ndindex(5, 3):
        step = np.zeros((5, 3))
        step[index] = 1e-6
        numeric = (loss(logits + step, target)[0].sum() - loss(logits - step, target)[0].sum()) / 2e-6
        assert slope[index] == pytest.approx(numeric, abs=1e-8)


def test_axes_are_standardised_uncorrelated_and_turn_back():
    x = findings(n=500, seed=3).x
    axes = Axes.of(x)
    u = axes(x)
    np.testing.assert_allclose(u.T @ u / len(u), np.diag(axes.variance), atol=1e-9)
    w = np.random.default_rng(0).normal(size=(2, u.shape[1] + 1))
    weight, bias = axes.unfold(w)
    np.testing.assert_allclose(x @ weight.T + bias, u @ w[:, :-1].T + w[:, -1], atol=1e-9)


def test_strengths_too_weak_to_be_chosen_are_not_tried(monkeypatch):
    train, validation = findings(n=80, d=40, seed=1), findings(n=300, d=40, seed=2)
    early = fit_linear(train, validation)
    monkeypatch.setattr(linear, "RISING", 99)
    whole = fit_linear(train, validation)
    assert 5 < len(early.description["tried"]) < len(whole.description["tried"]) == 17
    np.testing.assert_array_equal(early.weight, whole.weight)
    assert early.description["warnings"] == whole.description["warnings"]
    for losses in zip(*list(early.description["tried"].values())[-4:], strict=True):
        assert list(losses) == sorted(losses)


def test_a_grid_goes_on_while_one_field_gains():
    falls, rises = np.linspace(0.9, 0.5, 8), np.linspace(0.5, 0.9, 8)
    assert linear._only_rises(np.stack([rises, rises + 1], 1))
    assert not linear._only_rises(np.stack([rises, falls], 1))
    assert not linear._only_rises(rises[:3, None])
    assert not linear._only_rises(np.array([0.5, 0.501, 0.502, 0.503])[:, None]), "too little to be sure"
    assert linear._only_rises(np.stack([rises, np.full(8, np.nan)], 1)), "what is not judged does not count"


def test_every_field_gets_the_strength_that_is_best_for_it_on_validation():
    train, validation = findings(n=80, d=40, seed=1), findings(n=300, d=40, seed=2)
    told = fit_linear(train, validation).description
    tried = {float(strength): losses for strength, losses in told["tried"].items()}
    assert list(tried) == pytest.approx(sorted(STRENGTHS, reverse=True)[: len(tried)], rel=1e-4)
    for f, strength in enumerate(told["strengths"]):
        assert min(losses[f] for losses in tried.values()) == tried[min(tried, key=lambda s: abs(s - strength))][f]
    assert len(set(told["strengths"])) > 1, "the fields differ"


def test_the_validation_loss_is_that_of_the_probe():
    train, validation = findings(seed=1), findings(seed=2)
    probe = fit_linear(train, validation, strengths=[0.1])
    p, states = probe.probabilities(validation.x), validation.states
    for f, told in enumerate(probe.description["tried"]["0.1"]):
        rows = np.isin(states[:, f], (0, 1))
        truth = states[rows, f] == 1
        assert told == pytest.approx(-np.log(np.where(truth, p[rows, f], 1 - p[rows, f])).mean(), abs=1e-5)


def test_a_field_with_few_validation_records_gets_what_is_best_on_average():
    train, validation = findings(n=80, d=40, seed=1, blanks=0), findings(n=300, d=40, seed=2, blanks=0)
    validation.states[:, 0] = np.where(np.cumsum(validation.states[:, 0] == 1) > 9, 0, validation.states[:, 0])
    told = fit_linear(train, validation).description
    tried = {float(strength): losses for strength, losses in told["tried"].items()}
    average = min(tried, key=lambda s: np.mean(tried[s]))
    own = min(tried, key=lambda s: tried[s][0])
    assert own != average, "the case tests something"
    assert told["strengths"][0] == pytest.approx(average, rel=1e-4)


def test_classes_share_one_strength():
    told = fit_linear(classes(n=60, d=40, seed=1), classes(seed=2, d=40), exclusive=True).description
    assert len(set(told["strengths"])) == 1


def test_a_strength_at_the_edge_of_the_grid_is_told():
    train, validation = findings(n=80, d=40, seed=1), findings(n=300, d=40, seed=2)
    assert fit_linear(train, validation).description["warnings"] == []
    (told,) = fit_linear(train, validation, strengths=[1e-6, 1e-2]).description["warnings"]
    assert told["columns"] == [0, 1, 2]
    assert "got the strongest regularisation of the grid (0.01)" in told["message"]
    (told,) = fit_linear(train, validation, strengths=[10, 100]).description["warnings"]
    assert "weakest regularisation of the grid (10)" in told["message"]
    assert fit_linear(train, validation, strengths=[1e3, 1e4]).description["warnings"] == []


def test_uncertain_and_null_rows_change_nothing():
    train, validation = findings(seed=1), findings(seed=2)
    probe = fit_linear(train, validation, strengths=[0.1])
    for part in (train, validation):
        part.states[part.states == 2] = -1
    np.testing.assert_array_equal(probe.weight, fit_linear(train, validation, strengths=[0.1]).weight)


def test_the_bias_carries_no_penalty():
    train = findings(seed=1, blanks=0)
    probe = fit_linear(train, findings(seed=2, blanks=0), strengths=[1e6])
    np.testing.assert_allclose(probe.probabilities(train.x).mean(0), (train.states == 1).mean(0), atol=1e-6)


def test_a_field_with_one_state_gets_no_weights_and_is_named():
    train, validation = findings(seed=1), findings(seed=2)
    train.states[train.states[:, 1] == 1, 1] = 0
    probe = fit_linear(train, validation)
    assert probe.untrained == (1,)
    assert not probe.weight[1].any()
    assert (probe.probabilities(validation.x)[:, 1] == 0.5).all()
    assert probe.description["strengths"][1] is None
    assert probe.weight[0].any()


def test_a_class_without_a_training_image_is_never_predicted():
    train, validation = classes(seed=1), classes(seed=2)
    rows = train.states[:, 2] == 0
    train = replace(train, **{name: getattr(train, name)[rows] for name in ("x", "states", "patients", "ids")})
    probe = fit_linear(train, validation, exclusive=True)
    assert probe.untrained == (2,)
    p = probe.probabilities(validation.x)
    assert (p[:, 2] == 0).all()
    np.testing.assert_allclose(p.sum(1), 1)


def test_a_constant_feature_is_ignored():
    train, validation = findings(seed=1), findings(seed=2)
    train.x[:, 3] = validation.x[:, 3] = 7.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = fit_linear(train, validation)
    assert np.isfinite(probe.weight).all()
    assert not probe.weight[:, 3].any()


def test_fitting_is_deterministic_and_leaves_its_input_alone():
    train, validation = findings(seed=1), findings(seed=2)
    x, states = train.x.copy(), train.states.copy()
    first, second = (fit_linear(train, validation) for _ in range(2))
    assert first.weight.tobytes() == second.weight.tobytes()
    np.testing.assert_array_equal(train.x, x)
    np.testing.assert_array_equal(train.states, states)


def test_nothing_to_learn_from_is_an_error():
    train, validation = findings(seed=1), findings(seed=2)
    train.states[:] = -1
    with pytest.raises(VividError, match="no field has both"):
        fit_linear(train, validation)
    train = findings(seed=1)
    validation.states[:] = 2
    with pytest.raises(VividError, match="cannot be chosen"):
        fit_linear(train, validation)
    one = classes(seed=1)
    one.states[:] = np.eye(4, dtype=np.int64)[0]
    with pytest.raises(VividError, match="of one class"):
        fit_linear(one, classes(seed=2), exclusive=True)
    with pytest.raises(VividError, match="positive"):
        fit_linear(findings(seed=1), findings(seed=2), strengths=[0.0])


def test_features_of_another_width_are_refused():
    with pytest.raises(VividError, match=r"features \(N, 8\), not \(5, 9\)"):
        LinearProbe(np.zeros((3, 8)), np.zeros(3)).probabilities(np.zeros((5, 9)))


def test_a_trained_head_is_a_probe_whose_untrained_columns_say_nothing():
    head = torch.nn.Linear(3, 2)
    kept = head.weight.detach().clone()
    probe = LinearProbe.of_head(head, "encoder", untrained=(1,), description={"kind": "head"})
    x = np.random.default_rng(0).normal(size=(4, 3))
    logits = probe.logits(x)
    np.testing.assert_allclose(logits[:, 0], head.double()(torch.from_numpy(x)).detach()[:, 0], atol=1e-12)
    assert not logits[:, 1].any()
    assert (probe.encoder, probe.untrained, probe.description) == ("encoder", (1,), {"kind": "head"})
    assert torch.equal(head.weight.float(), kept), "the head itself stays"
