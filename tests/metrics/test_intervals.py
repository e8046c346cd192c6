"""Bootstrap intervals: they cover what they say, resample patients, and refuse what does not fit."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from vivid_monai.errors import VividError
from vivid_monai.metrics.intervals import bootstrap_auroc, paired_bootstrap_auroc
from vivid_monai.metrics.masked import masked_auroc


def binormal(rng, patients, images, shift, fields=1):
    """Scores of patients with several images each that share half their variance; AUROC is Φ(shift / √2)."""
    states = np.repeat(rng.integers(0, 2, size=(patients, fields)), images, axis=0)
    own = rng.normal(size=(patients, fields)).repeat(images, axis=0)
    noise = rng.normal(size=own.shape)
    return (own + noise) / np.sqrt(2) + shift * states, states, np.repeat(np.arange(patients), images)


def test_intervals_cover_the_true_auroc_at_their_level():
    rng = np.random.default_rng(1)
    truth = norm.cdf(1 / np.sqrt(2))
    trials = 40
    by_patient = by_image = 0
    for seed in range(trials):
        scores, states, patients = binormal(rng, patients=60, images=4, shift=1.0, fields=6)
        low, high = bootstrap_auroc(scores, states, patients, n_resamples=200, seed=seed).fields.T
        by_patient += ((low <= truth) & (truth <= high)).sum()
        low, high = bootstrap_auroc(scores, states, np.arange(len(scores)), n_resamples=200, seed=seed).fields.T
        by_image += ((low <= truth) & (truth <= high)).sum()
    # 240 intervals: a true coverage of 95 % gives a share within .95 ± .042 in 99.7 % of runs.
    assert 0.90 <= by_patient / (6 * trials) <= 0.99
    assert by_image / (6 * trials) < 0.87, "images taken as independent must show too narrow"


def test_copies_of_a_patients_images_add_no_certainty():
    scores, states, patients = binormal(np.random.default_rng(2), patients=80, images=1, shift=1.0, fields=3)
    once = bootstrap_auroc(scores, states, patients, n_resamples=100)
    often = bootstrap_auroc(*(np.repeat(part, 5, axis=0) for part in (scores, states, patients)), n_resamples=100)
    np.testing.assert_allclose(often.fields, once.fields, rtol=0, atol=1e-12)
    np.testing.assert_allclose(often.macro, once.macro, rtol=0, atol=1e-12)


def test_intervals_equal_a_plain_bootstrap():
    """The same resamples, drawn and scored one by one with scikit-learn."""
    scores, states, patients = binormal(np.random.default_rng(3), patients=50, images=2, shift=0.5, fields=2)
    rng = np.random.default_rng(7)
    plain = []
    for _ in range(60):
        rows = np.concatenate([np.flatnonzero(patients == p) for p in rng.integers(0, 50, 50)])
        plain.append([roc_auc_score(states[rows, f], scores[rows, f]) for f in range(2)])
    got = bootstrap_auroc(scores, states, patients, n_resamples=60, seed=7, level=0.8)
    np.testing.assert_allclose(got.fields, np.quantile(plain, (0.1, 0.9), axis=0).T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.macro, np.quantile(np.mean(plain, axis=1), (0.1, 0.9)), rtol=0, atol=1e-12)


def test_fields_with_few_cases_stay_out_of_the_macro():
    rng = np.random.default_rng(4)
    scores, states, patients = binormal(rng, patients=100, images=1, shift=1.0, fields=3)
    alone = bootstrap_auroc(scores[:, :2], states[:, :2], patients, n_resamples=50)
    states[:, 2] = 0
    states[:9, 2] = 1
    rare = bootstrap_auroc(scores, states, patients, n_resamples=50)
    assert rare.excluded == (2,)
    np.testing.assert_array_equal(rare.macro, alone.macro)
    assert np.isfinite(rare.fields).all()
    assert bootstrap_auroc(scores, states, patients, n_resamples=50, min_present=9).excluded == ()


def test_a_field_without_an_auroc_has_no_interval():
    scores, states, patients = binormal(np.random.default_rng(5), patients=40, images=1, shift=1.0)
    result = bootstrap_auroc(scores, np.zeros_like(states), patients, n_resamples=20)
    assert np.isnan(result.fields).all()
    assert np.isnan(result.macro).all()


def test_patients_may_be_named_and_the_seed_decides():
    scores, states, patients = binormal(np.random.default_rng(6), patients=40, images=2, shift=1.0)
    names = np.array([f"patient{p:05d}" for p in patients])
    numbered = bootstrap_auroc(scores, states, patients, n_resamples=50, seed=1)
    np.testing.assert_array_equal(
        bootstrap_auroc(scores, states, names, n_resamples=50, seed=1).fields, numbered.fields
    )
    assert (bootstrap_auroc(scores, states, names, n_resamples=50, seed=2).fields != numbered.fields).any()


def test_paired_difference_is_that_of_the_macros_and_narrower_than_unpaired():
    rng = np.random.default_rng(8)
    a, states, patients = binormal(rng, patients=150, images=1, shift=1.0, fields=3)
    b = a + 0.3 * rng.normal(size=a.shape)
    paired = paired_bootstrap_auroc(a, b, states, patients, n_resamples=200)
    assert paired.difference == pytest.approx(masked_auroc(a, states).mean() - masked_auroc(b, states).mean())
    assert paired.interval[0] <= paired.difference <= paired.interval[1]
    single = bootstrap_auroc(a, states, patients, n_resamples=200).macro
    assert np.diff(paired.interval) < 0.5 * np.diff(single)
    assert paired.excluded == ()


def test_paired_difference_of_equal_scores_is_exactly_nothing():
    a, states, patients = binormal(np.random.default_rng(9), patients=60, images=2, shift=1.0, fields=2)
    paired = paired_bootstrap_auroc(a, np.exp(a), states, patients, n_resamples=50)
    assert paired.difference == 0
    assert paired.interval.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": np.arange(3)}, "one patient for each of 4 images"),
        ({"scores": np.zeros((0, 1)), "states": np.zeros((0, 1)), "groups": np.arange(0)}, "empty"),
        ({"n_resamples": 0}, "n_resamples"),
        ({"level": 1.0}, "level"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, message):
    arguments = {"scores": np.zeros((4, 1)), "states": np.zeros((4, 1)), "groups": np.arange(4)} | changes
    with pytest.raises(VividError, match=message):
        bootstrap_auroc(**arguments)


def test_several_runs_give_the_interval_of_their_mean():
    rng = np.random.default_rng(5)
    states = rng.integers(0, 2, (80, 2))
    patients = rng.integers(0, 30, 80)
    runs = rng.normal(size=(3, 80, 2)) + states
    together = bootstrap_auroc(runs, states, patients, n_resamples=200)
    equal = bootstrap_auroc(np.stack([runs[0]] * 3), states, patients, n_resamples=200)
    alone = bootstrap_auroc(runs[0], states, patients, n_resamples=200)
    np.testing.assert_allclose(equal.fields, alone.fields)
    widths = [np.diff(bootstrap_auroc(run, states, patients, n_resamples=200).macro)[0] for run in runs]
    assert np.diff(together.macro)[0] < np.mean(widths), "independent noise of the runs averages out"
    paired = paired_bootstrap_auroc(runs, runs[0], states, patients, n_resamples=50)
    expected = np.mean([masked_auroc(run, states) for run in runs]) - masked_auroc(runs[0], states).mean()
    assert paired.difference == pytest.approx(expected)
