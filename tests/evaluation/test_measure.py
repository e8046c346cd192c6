"""What is measured on probabilities, against scikit-learn and the parts it is made of."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)

from tests.evaluation.scored import FIELDS, classes, findings, measured
from vivid_monai.errors import VividError
from vivid_monai.evaluation.measure import measure
from vivid_monai.evaluation.results import CLASS_METRICS, METRICS
from vivid_monai.metrics import statistics as sums
from vivid_monai.metrics.intervals import Patients, auroc_resamples
from vivid_monai.metrics.masked import masked_auroc


def test_every_metric_of_every_field_equals_sklearn_on_what_is_answered():
    scored, test = findings()
    results = measured(scored, test)
    for name, one in scored.items():
        for column, field in enumerate(FIELDS):
            answered = np.isin(test.states[:, column], (0, 1))
            truth, score = test.states[answered, column], one.test[0, answered, column]
            got = {metric: results.get(metric, field, name) for metric in METRICS}
            threshold = results.get("threshold", field, name, 0).value
            assert got["auroc"].value == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
            assert got["ap"].value == pytest.approx(average_precision_score(truth, score), abs=1e-12)
            assert got["brier"].value == pytest.approx(brier_score_loss(truth, score), abs=1e-12)
            assert got["f1"].value == pytest.approx(f1_score(truth, score >= threshold), abs=1e-12)
            ece = sums.ece(score, truth, np.arange(len(truth)))(np.ones((1, len(truth)), int))[0]
            assert got["ece"].value == pytest.approx(ece, abs=1e-12)
            for estimate in got.values():
                assert 0 <= estimate.low < estimate.value < estimate.high <= 1
        for metric in METRICS:
            macro = results.get(metric, "(macro)", name)
            mean = np.mean([results.get(metric, field, name).value for field in FIELDS])
            assert macro.value == pytest.approx(mean, abs=1e-12)
            assert macro.low < macro.value < macro.high


def test_counts_tell_what_each_number_rests_on():
    scored, test = findings()
    results = measured(scored, test)
    for column, field in enumerate(FIELDS):
        counts = [results.test[f"n_{word}"][field] for word in ("unanswerable", "absent", "present", "uncertain")]
        assert counts == [int((test.states[:, column] == code).sum()) for code in (-1, 0, 1, 2)]
    assert (results.test["n_images"], results.test["n_patients"]) == (300, len(set(test.patients)))
    assert len(results.test["images_sha256"]) == 64
    assert results.test["images_sha256"] != measured(scored, replace(test, ids=test.ids[::-1])).test["images_sha256"]


def test_threshold_comes_from_validation_not_from_test():
    scored, test = findings()
    moved = {name: replace(one, validation=one.validation * 0.5) for name, one in scored.items()}
    ours, other = measured(scored, test), measured(moved, test)
    assert other.get("threshold", "Edema", "good", 0).value == pytest.approx(
        ours.get("threshold", "Edema", "good", 0).value / 2
    )
    assert other.get("f1", "Edema", "good").value < ours.get("f1", "Edema", "good").value
    assert other.get("auroc", "Edema", "good") == ours.get("auroc", "Edema", "good")


def test_difference_is_paired_over_patients():
    scored, test = findings()
    got = next(one for one in measured(scored, test).differences if one.metric == "auroc")
    patients = Patients(test.patients, n_resamples=100)
    good, poor = (auroc_resamples(patients, scored[name].test, test.states).macro(range(3)) for name in scored)
    ((low, high),) = (good - poor).interval(bounded=False)
    value = (good - poor).value[0]
    assert (got.encoder, got.minus) == ("good", "poor")
    assert (got.value, got.low, got.high) == pytest.approx((value, low, high))
    assert not got.holds_zero


def test_an_encoder_against_itself_differs_by_nothing_in_any_metric():
    scored, test = classes()
    scored["same"] = scored["good"]
    differences = measured(scored, test, fields=["a", "b", "c"], exclusive=True).differences
    assert [one.metric for one in differences] == ["auroc", "ap", "accuracy"]
    assert all((one.value, one.low, one.high) == (0, 0, 0) for one in differences)


def test_neither_the_order_of_images_nor_a_second_time_changes_anything():
    scored, test = findings()
    order = np.random.default_rng(1).permutation(len(test.ids))
    moved = {name: replace(one, test=one.test[:, order]) for name, one in scored.items()}
    there = replace(test, states=test.states[order], patients=test.patients[order], ids=test.ids[order])
    options = {"task": "made", "fields": FIELDS, "exclusive": False, "validation_states": test.states, "seeds": [0]}
    first, again, other = (
        measure(s, test=t, n_resamples=50, **options) for s, t in ((scored, test), (scored, test), (moved, there))
    )
    assert first == again
    assert len(first.rows) == len(other.rows) > 0
    for got, same in zip(first.rows, other.rows, strict=True):
        assert (same.metric, same.field, same.encoder, same.seed) == (got.metric, got.field, got.encoder, got.seed)
        assert [same.value, same.low, same.high] == pytest.approx([got.value, got.low, got.high], abs=1e-9)


def test_one_answered_patient_makes_no_interval():
    scored, test = findings()
    states = test.states.copy()
    states[test.patients != test.patients[0], 0] = -1
    states[test.patients == test.patients[0], 0] = 1
    results = measured(scored, replace(test, states=states))
    assert results.get("brier", "Edema", "good").value is not None
    assert not any(results.get(metric, "Edema", "good").has_interval for metric in METRICS)


def test_seeds_are_told_and_are_no_error_bar():
    scored, test = findings(seeds=(0, 1, 2))
    results = measured(scored, test, seeds=[0, 1, 2])
    estimate = results.get("auroc", "(macro)", "good")
    per_seed = results.per_seed("auroc", "(macro)", "good")
    for seed, got in enumerate(per_seed):
        assert got == pytest.approx(np.mean(masked_auroc(scored["good"].test[seed], test.states)))
    assert estimate.value == pytest.approx(np.mean(per_seed))
    repeated = {name: replace(one, test=one.test[[0, 0, 0]]) for name, one in scored.items()}
    single = {name: replace(one, test=one.test[:1], validation=one.validation[:1]) for name, one in scored.items()}
    same = measured(repeated, test, seeds=[0, 1, 2]).get("auroc", "Edema", "good")
    alone = measured(single, test).get("auroc", "Edema", "good")
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high))


def test_a_field_with_few_cases_stays_out_of_the_macro_with_its_reason():
    scored, test = findings()
    states = test.states.copy()
    present = np.flatnonzero(states[:, 0] == 1)
    states[present[4:], 0] = -1
    results = measured(scored, replace(test, states=states))
    assert results.excluded == {"Edema": "4 present of at least 10"}
    assert results.macro_fields == FIELDS[1:]
    kept = [results.get("auroc", field, "good").value for field in FIELDS[1:]]
    assert results.get("auroc", "(macro)", "good").value == pytest.approx(np.mean(kept))
    assert measured(scored, replace(test, states=states), min_present=4).excluded == {}
    turned = np.where(np.isin(states, (0, 1)), 1 - states, states)
    assert measured(scored, replace(test, states=turned)).excluded == {"Edema": "4 absent of at least 10"}


def test_a_field_without_a_head_stays_out_for_all_encoders():
    scored, test = findings()
    scored["poor"] = replace(scored["poor"], untrained=(1,))
    results = measured(scored, test)
    assert list(results.excluded) == ["Mass, left"]
    assert "no head for poor" in results.excluded["Mass, left"]
    assert any("poor: no head for Mass, left" in warning for warning in results.warnings)


def test_nothing_to_measure_is_an_error():
    scored, test = findings()
    with pytest.raises(VividError, match="no field can be measured on its 300 test images"):
        measured(scored, replace(test, states=np.zeros_like(test.states)))


def test_an_auroc_surely_under_chance_is_warned_of_and_a_doubtful_one_is_not():
    scored, test = findings(noise=(1.0, 200.0))
    scored["turned"] = replace(scored["good"], test=1 - scored["good"].test)
    warnings = measured(scored, test).warnings
    assert sum("turned: AUROC of" in warning and "under chance" in warning for warning in warnings) == 3
    assert not any("good" in warning or "poor" in warning for warning in warnings)


def test_what_has_no_interval_or_no_threshold_is_warned_of():
    scored, test = findings()
    certain = np.where(test.states == 1, 0.9, 0.1)[None]
    scored["perfect"] = replace(scored["good"], test=certain)
    validation_states = test.states.copy()
    validation_states[:, 1] = 0
    results = measure(
        scored,
        task="made",
        fields=FIELDS,
        exclusive=False,
        validation_states=validation_states,
        test=test,
        seeds=[0],
        n_resamples=20,
    )
    assert results.get("f1", "Mass, left", "good").value is None
    assert results.get("f1", "(macro)", "good").value is None
    told = "no F1 for Mass, left: the validation images have one state only, which gives no threshold"
    assert f"every encoder: {told}" in results.warnings
    assert sum("no F1" in one for one in results.warnings) == 1
    assert results.get("auroc", "Edema", "perfect").value == 1
    assert any("perfect: no interval for the AUROC of Edema, Mass, left" in one for one in results.warnings)
    assert not any("good: no interval" in one for one in results.warnings)


def test_few_patients_and_fewer_fields_than_asked_are_warned_of():
    scored, test = findings(n_patients=40)
    states = test.states.copy()
    states[:, 0] = 0
    warnings = measured(scored, replace(test, states=states)).warnings
    assert any(one.startswith("only 40 test patients") for one in warnings)
    assert "macro averages over 2 of the 3 fields asked for" in warnings
    assert measured(*findings()).warnings == []


def test_what_a_probe_says_about_its_fit_is_passed_on_by_name():
    scored, test = findings(seeds=(4, 7))
    probes = [{"kind": "linear"}, {"kind": "linear", "warnings": [{"columns": [0, 2], "message": "is at the edge"}]}]
    scored["poor"] = replace(scored["poor"], probes=probes)
    assert measured(scored, test, seeds=[4, 7]).warnings == ["poor, seed 7: Edema, Nodule: small is at the edge"]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_probabilities_that_do_not_fit_are_refused(part):
    scored, test = findings()
    for wrong, told in (
        (scored["poor"].test[:, :-1], "299"),
        (scored["poor"].test[[0, 0]], "for 1 seeds"),
        (scored["poor"].test + 0.5, "is no probability"),
        (scored["poor"].test - 0.5, "is no probability"),
        (scored["poor"].test * np.nan, "not finite"),
    ):
        with pytest.raises(VividError, match=told):
            measured({**scored, "poor": replace(scored["poor"], **{part: wrong})}, test)


def test_classes_are_measured_as_classes():
    scored, test = classes()
    results = measured(scored, test, fields=["a", "b", "c"], exclusive=True)
    truth, predicted = test.states.argmax(1), scored["good"].test[0].argmax(1)
    accuracy, balanced = (results.get(metric, "(all)", "good") for metric in CLASS_METRICS)
    assert accuracy.value == pytest.approx(accuracy_score(truth, predicted))
    assert accuracy.low < accuracy.value < accuracy.high
    assert balanced.value == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert results.confusion["good"] == confusion_matrix(truth, predicted).tolist()
    one_against_rest = roc_auc_score(truth, scored["good"].test[0], multi_class="ovr")
    assert results.get("auroc", "(macro)", "good").value == pytest.approx(one_against_rest)
    assert results.kind == "classes"


def test_classes_need_exactly_one_to_be_present():
    scored, test = classes()
    for row in ([0, 0, 0], [1, 1, 0], [0, 1, 2], [0, 1, -1]):
        states = test.states.copy()
        states[5] = row
        with pytest.raises(VividError, match="i5 does not have exactly one present class"):
            measured(scored, replace(test, states=states), fields=["a", "b", "c"], exclusive=True)
