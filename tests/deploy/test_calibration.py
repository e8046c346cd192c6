"""Probabilities that mean what they say; states at the rates that were asked for."""

import numpy as np
import pytest
from scipy.special import expit, logit

from vivid_monai.deploy.calibration import Calibration, calibrate
from vivid_monai.errors import VividError


def made(n=4000, seed=0, slope=2.0, shift=-1.0):
    """Logits that are too sure and shifted, with the states that their true probabilities gave."""
    rng = np.random.default_rng(seed)
    probability = rng.uniform(0.02, 0.9, n)
    states = (rng.random(n) < probability).astype(int)
    return ((logit(probability) + shift) * slope)[:, None], states[:, None], np.arange(n) // 2


def probability_of(one: Calibration, logits):
    return expit(one.slope * logits + one.intercept)


def fit(logits, states, patients=None, **options) -> Calibration:
    patients = np.arange(len(logits)) if patients is None else patients
    return calibrate(logits, states, patients, ["Edema"], **options)[0]


def test_finds_the_sigmoid_that_made_the_states():
    logits, states, patients = made(20_000)
    one = fit(logits, states, patients)
    assert one.slope == pytest.approx(0.5, abs=0.02)
    assert one.intercept == pytest.approx(1.0, abs=0.04)
    other, truth, _ = made(20_000, seed=1)
    probability = probability_of(one, other[:, 0])
    for low in np.arange(0.1, 0.9, 0.2):
        inside = (probability >= low) & (probability < low + 0.2)
        assert truth[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.03)


def test_states_keep_the_rates_on_other_images():
    one = fit(*made(), sensitivity=0.95, specificity=0.8)
    logits, states, _ = made(20_000, seed=2)
    probability, present = probability_of(one, logits[:, 0]), states[:, 0] == 1
    assert one.absent_below < one.present_from
    assert (probability[present] >= one.absent_below).mean() == pytest.approx(0.95, abs=0.015)
    assert (probability[~present] < one.present_from).mean() == pytest.approx(0.8, abs=0.02)


def test_rates_hold_exactly_on_the_images_they_were_chosen_on():
    for seed in range(20):
        logits, states, _ = made(60, seed=seed)
        one = fit(logits, states)
        if one.unanswered:
            continue
        probability, present = probability_of(one, logits[:, 0]), states[:, 0] == 1
        assert (probability[present] >= one.absent_below).mean() >= 0.9
        assert (probability[~present] < one.present_from).mean() >= 0.9


def test_one_threshold_that_does_both_leaves_nothing_uncertain():
    rng = np.random.default_rng(0)
    states = (np.arange(200) % 2)[:, None]
    one = fit(6 * (states - 0.5) + rng.normal(size=(200, 1)), states)
    assert one.absent_below == one.present_from
    assert 0.2 < one.present_from < 0.8


def test_uncertain_and_unanswerable_images_count_for_nothing():
    logits, states, patients = made()
    more = np.concatenate([logits, np.full((500, 1), 9.0)])
    codes = np.concatenate([states, np.where(np.arange(500) % 2, 2, -1)[:, None]])
    assert fit(more, codes, np.r_[patients, np.arange(500)]) == fit(logits, states, patients)


def test_platts_targets_keep_few_images_from_certainty():
    states = (np.arange(24) % 2)[:, None]
    one = fit(states * 2.0 - 1, states)
    assert 0.85 < probability_of(one, 1.0) < 0.95
    assert probability_of(one, 1.0) == pytest.approx(13 / 14, abs=0.01)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_size_of_the_logits_does_not_matter(scale):
    logits, states, patients = made()
    one, other = fit(logits, states, patients), fit(logits * scale, states, patients)
    assert other.slope * scale == pytest.approx(one.slope, rel=1e-3)
    assert other.present_from == pytest.approx(one.present_from, rel=1e-3)


def test_what_cannot_be_told_is_not_answered():
    logits, states, patients = made(200)
    noise = np.random.default_rng(5).normal(size=(200, 1))
    cases = {
        "does not differ from chance": fit(noise, states, patients),
        "AUROC 0.": fit(-logits, states, patients),
        "3 present and": fit(logits[:], np.where(np.cumsum(states, 0) > 3, 0, states), patients),
        "one state only": fit(logits, states, patients, untrained=[0]),
    }
    for words, one in cases.items():
        assert words in one.unanswered
        assert (one.slope, one.intercept, one.absent_below, one.present_from) == (1, 0, None, None)


def test_patients_with_many_images_do_not_make_chance_look_sure():
    rng = np.random.default_rng(1)
    states = np.repeat(np.arange(24) % 2, 50)[:, None]
    logits = np.repeat(rng.normal(size=24) + 0.5 * (np.arange(24) % 2), 50)[:, None]
    assert "does not differ from chance" in fit(logits, states, np.repeat(np.arange(24), 50)).unanswered
    assert not fit(logits, states).unanswered


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"logits": np.zeros((5, 2))}, "must have one shape"),
        ({"logits": np.full((4000, 1), np.nan)}, "is not finite"),
        ({"sensitivity": 0.5}, "between 0.5 and 1"),
        ({"specificity": 1.0}, "between 0.5 and 1"),
    ],
)
def test_unusable_input_is_refused(change, told):
    logits, states, patients = made()
    with pytest.raises(VividError, match=told):
        fit(**{"logits": logits, "states": states, "patients": patients, **change})
