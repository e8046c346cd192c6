import json

import pytest

from vivid_monai.networks.teacher.text import published_pieces, schema_text, slot_pieces
from vivid_monai.ums.states import STATES


@pytest.mark.parametrize(
    "findings",
    [{}, {"Edema": "present"}, {"Edema": None, 'A "quoted" field': "absent", "Épanchement": "uncertain"}],
)
def test_published_pieces_join_to_the_json_of_ums_findings(findings):
    text = "".join(piece.text for piece in published_pieces(findings))
    record = {"findings": {field: {"state": state} for field, state in findings.items()}}
    assert text == json.dumps(record, indent=2, ensure_ascii=False)


def test_the_pieces_of_a_field_are_its_whole_entry():
    pieces = published_pieces({"Edema": "present", "Fracture": None})
    own = {field: "".join(p.text for p in pieces if p.field == field) for field in ("Edema", "Fracture", None)}
    assert own["Edema"] == '    "Edema": {\n      "state": "present"\n    }'
    assert own["Fracture"] == '    "Fracture": {\n      "state": null\n    }'
    assert own[None] == '{\n  "findings": {\n,\n\n  }\n}'
    assert [(p.text, p.field) for p in pieces if p.is_state] == [("present", "Edema"), ("null", "Fracture")]


@pytest.mark.parametrize("fields", [["Edema", "Pleural Effusion"], ["Pleural Effusion", "Edema"]])
def test_the_schema_names_every_state_and_field_in_one_order(fields):
    text = schema_text(fields)
    assert text == "Each finding is one of: absent, present, uncertain.\nFindings: Edema, Pleural Effusion.\nImage:"


@pytest.mark.parametrize("state", STATES)
def test_a_slot_is_a_line_with_the_field_and_its_state(state):
    name, word = slot_pieces("Edema", state)
    assert (name.text + word.text, name.is_state, word.is_state) == (f"\nEdema: {state}", False, True)
    assert word.text == state
