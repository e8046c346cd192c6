"""States of one label space in the words of another, and the union of several."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space, parse_label_space
from vivid_monai.ums.mapping import shared_fields, shared_states, union_space

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


def union(*spaces: LabelSpace) -> LabelSpace:
    return parse_label_space(json.dumps(union_space(spaces)))


def own(name: str, *fields: dict, **more) -> LabelSpace:
    told = {"label_space_version": "1.0", "name": name, "description": "d", "source": f"s of {name}"}
    return parse_label_space(json.dumps({**told, "fields": list(fields), **more}))


def test_the_union_has_every_concept_once_by_its_first_name():
    # CT-RATE's "Lung opacity" is not CheXpert's.
    spaces = [load_label_space(name) for name in available_label_spaces() if name != "ctrate-18"]
    for order in (spaces, spaces[::-1], [load_label_space("ctrate-18"), NIH, load_label_space("lidc-malignancy")]):
        whole = union(*order)
        first: dict[str, str] = {}
        for space in order:
            for field, concept in space.concepts.items():
                first.setdefault(concept, field)
        assert dict(zip(whole.concepts.values(), whole.concepts, strict=True)) == first
        assert whole.fields == tuple(first.values())
        for space in order:
            assert [whole.concepts[theirs] for theirs in space.mapping_to(whole).values()] == list(
                space.concepts.values()
            )
    assert not whole.exclusive


def test_synonyms_are_one_field_that_answers_to_all_its_names():
    whole = union(CHEXPERT, NIH)
    assert whole.name == "chexpert-14-and-nih-14"
    assert NIH.source in whole.source
    assert {whole.resolve(word) for word in ("Effusion", "pleural_effusion", "Pleural Effusion")} == {
        "Pleural Effusion"
    }
    assert union(NIH, CHEXPERT).resolve("Pleural Effusion") == "Effusion"
    assert whole.resolve("Infiltrate") == "Infiltration"


def test_hierarchy_sides_and_no_finding_are_those_of_all():
    whole = union(NIH, CHEXPERT)
    assert whole.parents == CHEXPERT.parents
    assert whole.sides["Cardiomegaly"] == "midline"
    assert (whole.no_finding, whole.no_finding_compatible) == ("No Finding", {"Support Devices"})
    normal = {"field": "Normal", "compatible": ["Clip"]}
    beside = union(CHEXPERT, own("a", {"name": "Normal"}, {"name": "Clip"}, no_finding=normal))
    assert (beside.no_finding, beside.no_finding_compatible) == ("No Finding", {"Support Devices", "Clip"})
    assert beside.resolve("normal") == "No Finding"
    assert union(load_label_space("organamnist-11"), NIH).sided
    rated = union(NIH, load_label_space("lidc-malignancy"))
    assert rated.ratings == load_label_space("lidc-malignancy").ratings


def test_a_field_without_a_concept_is_known_by_its_name():
    here, there = own("a", {"name": "Old Scar"}, {"name": "Clip"}), own("b", {"name": "old_scar", "label": "scar"})
    assert here.mapping_to(there) == {"Old Scar": "old_scar"}
    assert union(here, there).fields == ("Old Scar", "Clip")
    assert shared_states(np.array([[1, 0]], np.int8), here, there).tolist() == [[1]]


def test_what_a_space_does_not_ask_is_null_in_the_union():
    whole = union(NIH, CHEXPERT)
    states = dict(zip(whole.fields, shared_states(row(NIH, Hernia=1, others=0), NIH, whole)[0].tolist(), strict=True))
    assert {field for field, state in states.items() if state == -1} == set(CHEXPERT.fields) - set(
        NIH.mapping_to(CHEXPERT).values()
    ) - {"No Finding"}
    assert (states["Hernia"], states["Edema"], states["No Finding"]) == (1, 0, 0)
    nothing = shared_states(row(NIH, others=0), NIH, whole)[0]
    assert nothing[whole.fields.index("No Finding")] == 1, "NIH looked for everything it lists"
    silent = shared_states(row(load_label_space("chexpert-12"), others=0), load_label_space("chexpert-12"), whole)[0]
    assert silent[whole.fields.index("No Finding")] == -1
    assert shared_states(np.zeros((1, 14), np.int8), NIH, whole).dtype == np.int8


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (
            CHEXPERT,
            load_label_space("ctrate-18"),
            r"'Lung opacity' of 'ctrate-18' \(ct-lung-opacity\) and 'Lung Opacity' of 'chexpert-14' \(lung-opacity\)",
        ),
        (NIH, own("a", {"name": "Edema"}), "'Edema' of 'a' .* same concept"),
        (NIH, own("a", {"name": "Nodule or Mass", "label": "mass"}), "'mass' of 'a'"),
        (
            own("a", {"name": "Kidney", "concept": "kidney", "side": "left"}),
            own("b", {"name": "Niere", "concept": "kidney", "side": "right"}),
            "'Niere' of 'b' has the side 'right', 'Kidney' of another label space 'left'",
        ),
    ],
)
def test_one_name_for_two_meanings_is_refused(one, other, says):
    for spaces in ((one, other), (one, NIH, other)):
        with pytest.raises(VividError, match=says):
            union(*spaces)


def test_a_side_that_one_space_leaves_open_is_the_others():
    here, there = (
        own("a", {"name": "Organ", "concept": "o"}),
        own("b", {"name": "Organ", "concept": "o", "side": "left"}),
    )
    assert union(here, there).sides == union(there, here).sides == {"Organ": "left"}


def test_an_alias_that_means_something_else_elsewhere_is_left_out():
    here = own("a", {"name": "Opacity", "aliases": ["Shadow", "Nodule"], "concept": "lung-opacity"})
    whole = union(here, NIH, own("b", {"name": "Spot", "aliases": ["Shadow"]}))
    assert whole.resolve("Nodule") == "Nodule"
    with pytest.raises(VividError, match="Shadow"):
        whole.resolve("Shadow")
