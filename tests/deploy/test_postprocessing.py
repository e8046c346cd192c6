"""Probabilities become states, contradictions are resolved, and every record verifies."""

import numpy as np
import pytest

from vivid_monai.deploy.postprocessing import DecisionRules
from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.verify import verify


def answers(space="chexpert-14", **thresholds) -> DecisionRules:
    """DecisionRules of a label space; absent below 0.3, present from 0.6 unless said otherwise."""
    labels = load_label_space(space)
    rules = []
    for field in labels.fields:
        low, high = thresholds.get(field, (0.3, 0.6))
        ancestors = list(labels.ancestors(field))
        rules.append({"field": field, "ancestors": ancestors, "absent_below": low, "present_from": high})
    return DecisionRules(
        {
            "label_space": space,
            "modality": "DX",
            "anatomy": "chest",
            "labeller": "made",
            "labeller_version": "1",
            "no_finding": labels.no_finding,
            "no_finding_compatible": sorted(labels.no_finding_compatible),
            "fields": rules,
        }
    )


def test_thresholds_belong_to_the_side_they_name():
    one = answers("lidc-malignancy")
    field = one.fields[0]
    said = {p: one.states([p])[field] for p in (0.0, 0.2999, 0.3, 0.5999, 0.6, 1.0)}
    assert list(said.values()) == ["absent", "absent", "uncertain", "uncertain", "present", "present"]


@pytest.mark.parametrize("odd", [(0.6, 0.3), (None, 0.6), ("0.3", 0.6), (float("nan"), 0.6), (True, 1)])
def test_thresholds_that_could_fail_on_some_image_are_told_at_once(odd):
    with pytest.raises(VividError, match="Edema: absent_below and present_from must be two numbers in order, or both"):
        answers(Edema=odd)
    spec = answers().spec
    del spec["fields"][0]["absent_below"]
    with pytest.raises(VividError, match="must be two numbers in order"):
        DecisionRules(spec)


def test_what_is_found_stands_and_its_ancestors_are_at_least_uncertain():
    one = answers("chexpert-12")
    probabilities = dict.fromkeys(one.fields, 0.1) | {"Pneumonia": 0.9, "Cardiomegaly": 0.5}
    states = one.states(list(probabilities.values()))
    assert (states["Pneumonia"], states["Lung Opacity"], states["Edema"]) == ("present", "uncertain", "absent")
    assert (states["Cardiomegaly"], states["Enlarged Cardiomediastinum"]) == ("uncertain", "absent")


def test_nothing_found_does_not_stand_beside_a_finding():
    one = answers()
    probabilities = dict.fromkeys(one.fields, 0.1) | {"No Finding": 0.9}
    assert one.states(list(probabilities.values()))["No Finding"] == "present"
    probabilities["Support Devices"] = 0.9
    assert one.states(list(probabilities.values()))["No Finding"] == "present"
    probabilities["Edema"] = 0.9
    assert one.states(list(probabilities.values()))["No Finding"] == "absent"


def test_an_unanswered_field_has_neither_state_nor_score():
    one = answers("chexpert-12", Edema=(None, None))
    findings = one.record("a.png", [0.7] * 12)["findings"]
    assert findings["Edema"] == {"state": None}
    assert findings["Fracture"] == {"state": "present", "score": 0.7}


@pytest.mark.parametrize("space", ["chexpert-14", "chexpert-12", "nih-14"])
def test_every_record_verifies(space):
    rng = np.random.default_rng(0)
    one = answers(space)
    seen = set()
    for _ in range(300):
        record = one.record("study/a.png", rng.random(len(one.fields)))
        assert verify(record) == []
        seen |= {finding["state"] for finding in record["findings"].values()}
    assert seen == {"present", "absent", "uncertain"}


def test_too_few_probabilities_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        answers("chexpert-12").states([0.5] * 11)


def test_rules_that_no_record_could_hold_are_refused():
    with pytest.raises(VividError, match="holds half of a surrogate pair"):
        DecisionRules({**answers().spec, "labeller": "\ud800"})
