"""What is measured on probabilities, against scikit-learn and the parts it is made of."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)

from tests.evaluation.scored import FIELDS, classes, findings, measured
from vivid_monai.errors import VividError
from vivid_monai.metrics.intervals import paired_auroc


def test_every_metric_of_every_field_equals_sklearn_on_what_is_answered():
    scored, test = findings()
    results = measured(scored, test)
    for name, one in scored.items():
        for column, field in enumerate(FIELDS):
            answered = np.isin(test.states[:, column], (0, 1))
            truth, score = test.states[answered, column], one.test[0, answered, column]
            got = results.encoders[name].fields[field]
            threshold = results.encoders[name].thresholds[field][0]
            assert got["auroc"].value == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
            assert got["ap"].value == pytest.approx(average_precision_score(truth, score), abs=1e-12)
            assert got["brier"].value == pytest.approx(brier_score_loss(truth, score), abs=1e-12)
            assert got["f1"].value == pytest.approx(f1_score(truth, score >= threshold), abs=1e-12)
            for estimate in got.values():
                assert 0 <= estimate.low < estimate.value < estimate.high <= 1
        macro = np.mean([results.encoders[name].fields[field]["ap"].value for field in FIELDS])
        assert results.encoders[name].macro["ap"].value == pytest.approx(macro, abs=1e-12)


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
    assert other.encoders["good"].thresholds["Edema"][0] == pytest.approx(
        ours.encoders["good"].thresholds["Edema"][0] / 2
    )
    assert other.encoders["good"].fields["Edema"]["f1"].value < ours.encoders["good"].fields["Edema"]["f1"].value
    assert other.encoders["good"].fields["Edema"]["auroc"] == ours.encoders["good"].fields["Edema"]["auroc"]


def test_difference_is_paired_over_patients():
    scored, test = findings()
    got = next(one for one in measured(scored, test).differences if one.metric == "auroc")
    value, low, high = paired_auroc(
        scored["good"].test, scored["poor"].test, test.states, test.patients, n_resamples=100
    )
    assert (got.first, got.second) == ("good", "poor")
    assert (got.estimate.value, got.estimate.low, got.estimate.high) == pytest.approx((value, low, high))
    assert not got.estimate.holds_zero


def test_seeds_are_told_and_are_no_error_bar():
    scored, test = findings(seeds=(0, 1, 2))
    results = measured(scored, test, seeds=[0, 1, 2])
    estimate = results.encoders["good"].macro["auroc"]
    assert len(estimate.per_seed) == 3
    assert estimate.value == pytest.approx(np.mean(estimate.per_seed))
    repeated = {name: replace(one, test=one.test[[0, 0, 0]]) for name, one in scored.items()}
    single = {name: replace(one, test=one.test[:1], validation=one.validation[:1]) for name, one in scored.items()}
    same = measured(repeated, test, seeds=[0, 1, 2]).encoders["good"].fields["Edema"]["auroc"]
    alone = measured(single, test).encoders["good"].fields["Edema"]["auroc"]
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high))


def test_a_field_with_few_cases_stays_out_of_the_macro_with_its_reason():
    scored, test = findings()
    states = test.states.copy()
    present = np.flatnonzero(states[:, 0] == 1)
    states[present[4:], 0] = -1
    results = measured(scored, replace(test, states=states))
    assert results.excluded == {"Edema": "4 present of at least 10"}
    assert results.macro_fields == FIELDS[1:]
    kept = [results.encoders["good"].fields[field]["auroc"].value for field in FIELDS[1:]]
    assert results.encoders["good"].macro["auroc"].value == pytest.approx(np.mean(kept))
    assert measured(scored, replace(test, states=states), min_present=4).excluded == {}


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


def test_classes_are_measured_as_classes():
    scored, test = classes()
    results = measured(scored, test, fields=["a", "b", "c"], exclusive=True)
    truth, predicted = test.states.argmax(1), scored["good"].test[0].argmax(1)
    got = results.encoders["good"].classes
    assert got.accuracy.value == pytest.approx(accuracy_score(truth, predicted))
    assert got.accuracy.low < got.accuracy.value < got.accuracy.high
    assert got.confusion == confusion_matrix(truth, predicted).tolist()
    one_against_rest = roc_auc_score(truth, scored["good"].test[0], multi_class="ovr")
    assert results.encoders["good"].macro["auroc"].value == pytest.approx(one_against_rest)
    assert results.kind == "classes"


def test_classes_need_exactly_one_to_be_present():
    scored, test = classes()
    states = test.states.copy()
    states[5] = 0
    with pytest.raises(VividError, match="exactly one present class"):
        measured(scored, replace(test, states=states), fields=["a", "b", "c"], exclusive=True)
