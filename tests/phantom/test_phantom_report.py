"""A report says what the states say, and is silent where they are null."""

import re

import pytest

from vivid_monai.phantom import read_study
from vivid_monai.phantom.phantom import sentences
from vivid_monai.ums.label_space import load_label_space

FIELDS = load_label_space("chexpert-12").fields


def read(report: str, section: str) -> dict[str, str | None]:
    """A labeller by rules that knows the keywords and nothing else of how reports are made."""
    text = re.search(rf"{section}: (.*)", report).group(1).lower()
    states: dict[str, str | None] = {}
    for name in FIELDS:
        about = [s for s in text.split(".") if any(word in s for word in sentences()[name]["keywords"])]
        assert len(about) <= 1, (name, report)
        if not about:
            states[name] = None
        elif re.search(r"possible|may be|cannot be excluded", about[0]):
            states[name] = "uncertain"
        elif re.search(r"\b(no|not|normal)\b", about[0]):
            states[name] = "absent"
        else:
            states[name] = "present"
    return states


def test_reports_say_what_the_states_say() -> None:
    seen = set()
    for index in range(1000):
        told = read_study(8, index)
        assert read(told.report, "FINDINGS") == told.states
        mentioned = {name: None if s == "absent" else s for name, s in told.states.items()}
        assert read(told.report, "IMPRESSION") == mentioned
        seen |= set(told.states.items())
    assert len(seen) == 4 * len(FIELDS)  # every field in every state, null included


def test_reports_name_the_side_and_the_degree() -> None:
    checked = 0
    for index in range(600):
        told = read_study(9, index)
        ill = told.drawn.get("Pneumothorax")
        if told.states["Pneumothorax"] == "present" and ill:
            (sentence,) = [s for s in told.report.split("\n")[0].split(".") if "neumothorax" in s]
            assert ill.sides[0] in sentence
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_uses_the_words_of_another(name: str) -> None:
    told = sentences()[name]
    for state in ("present", "absent", "uncertain"):
        for sentence in told[state]:
            text = sentence.format(
                place="the right lower lung", side="left", degree="mild", Degree="Mild",
                devices="a chest tube", Devices="A pacemaker",
            ).lower()  # fmt: skip
            assert any(word in text for word in told["keywords"]), sentence
            for other in set(FIELDS) - {name}:
                assert not any(word in text for word in sentences()[other]["keywords"]), (sentence, other)
