"""States of one label space in the words of another."""

from dataclasses import replace

import numpy as np

from vivid_monai.evaluation.task import shared_fields, shared_states
from vivid_monai.ums.label_space import load_label_space

NIH, CHEXPERT, SHARED = (load_label_space(name) for name in ("nih-14", "chexpert-14", "nih-shared"))


def row(space, **states):
    """States of one image: the named ones, all others as ``others``."""
    others = states.pop("others")
    named = {space.resolve(name.replace("_", " ")): state for name, state in states.items()}
    return np.array([[named.get(field, others) for field in space.fields]])


def told(states):
    return dict(zip(SHARED.fields, states[0].tolist(), strict=True))


def test_every_concept_keeps_its_state_under_its_other_name():
    got = told(shared_states(row(CHEXPERT, Pleural_Effusion=1, Edema=2, Atelectasis=0, others=-1), CHEXPERT, SHARED))
    assert (got["Effusion"], got["Edema"], got["Atelectasis"], got["Pneumonia"]) == (1, 2, 0, -1)


def test_order_of_the_fields_does_not_matter():
    turned = replace(CHEXPERT, fields=CHEXPERT.fields[::-1])
    states = np.random.default_rng(0).integers(-1, 3, size=(20, len(CHEXPERT.fields)))
    np.testing.assert_array_equal(
        shared_states(states, CHEXPERT, SHARED), shared_states(states[:, ::-1], turned, SHARED)
    )


def test_nih_finds_nothing_where_every_finding_is_absent():
    assert told(shared_states(row(NIH, others=0), NIH, SHARED))["No Finding"] == 1
    assert told(shared_states(row(NIH, Hernia=1, others=0), NIH, SHARED))["No Finding"] == 0
    assert told(shared_states(row(NIH, Hernia=-1, others=0), NIH, SHARED))["No Finding"] == -1


def test_chexperts_own_column_counts_and_a_finding_makes_it_absent():
    for own, finding, expected in ((1, -1, 1), (-1, 1, 0), (-1, 2, -1), (0, -1, 0), (1, 1, 1)):
        states = row(CHEXPERT, No_Finding=own, Edema=finding, others=-1)
        assert told(shared_states(states, CHEXPERT, SHARED))["No Finding"] == expected


def test_what_may_stand_beside_no_finding_does_not_make_it_absent():
    assert CHEXPERT.no_finding_compatible == {"Support Devices"}
    states = row(CHEXPERT, Support_Devices=1, others=-1)
    assert told(shared_states(states, CHEXPERT, SHARED))["No Finding"] == -1


def test_a_space_that_says_nothing_of_it_leaves_it_open():
    twelve = load_label_space("chexpert-12")
    assert "No Finding" not in shared_fields(twelve, SHARED)
    assert set(SHARED.fields) == shared_fields(NIH, SHARED) == shared_fields(CHEXPERT, SHARED)
    assert told(shared_states(row(twelve, Edema=1, others=0), twelve, SHARED))["No Finding"] == -1
