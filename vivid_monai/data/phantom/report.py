"""The report of a study: a sentence for every finding the labels speak of, none for the others.

`sentences.json` holds, for every field, its sentences by state and its keywords, which its sentences use and no
other field's do: a finding that is not mentioned leaves no trace in the text. In a sentence {place} is "the right lower
lung", {side} "right", {degree} "mild", {devices} "an endotracheal tube and a pacemaker".
"""

import json
from functools import lru_cache
from importlib.resources import files

import numpy as np

from vivid_monai.data.phantom.disease import FIELDS, Disease

_HEADING = {"AP": "Portable frontal view.", "PA": "Frontal view."}
_NOTHING = "No acute abnormality among the findings described."


@lru_cache
def sentences() -> dict[str, dict[str, list[str]]]:
    """Field → "present", "absent", "uncertain" and "keywords" → texts."""
    return json.loads(files(__package__).joinpath("sentences.json").read_text(encoding="utf-8"))


def degree(severity: float) -> str:
    """The schema's word for a severity in (0, 1]."""
    return "mild" if severity < 0.45 else "moderate" if severity < 0.75 else "severe"


def laterality(sides: tuple[str, ...]) -> str | None:
    """ "left", "right" or "bilateral"; None where a finding has no side."""
    return None if not sides else "bilateral" if len(sides) == 2 else sides[0]


def write_report(
    rng: np.random.Generator, frontal: str, states: dict[str, str | None], drawn: dict[str, Disease]
) -> str:
    """Findings in a random order, then an impression that repeats what is present or uncertain.

    `frontal` is the study's frontal view; `states` holds every field. A finding that is called present without being
    drawn (a wrong label) is described without a place.
    """
    mentioned = [name for name in FIELDS if states[name] is not None]
    lines, impression = [], []
    for i in rng.permutation(len(mentioned)):
        name = mentioned[i]
        state = str(states[name])
        choices = sentences()[name][state]
        sentence = _fill(choices[int(rng.integers(len(choices)))], drawn.get(name))
        lines.append(sentence)
        if state != "absent":
            impression.append(sentence)
    head = _HEADING[frontal]
    return f"FINDINGS: {' '.join([head, *lines])}\nIMPRESSION: {' '.join(impression) or _NOTHING}"


def _fill(sentence: str, ill: Disease | None) -> str:
    ill = ill or Disease(severity=0.3)
    side = laterality(ill.sides)
    noun = "lungs" if side == "bilateral" or side is None else "lung"
    place = " ".join(word for word in ("the", "" if side in (None, "bilateral") else side, ill.zone, noun) if word)
    devices = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in ill.devices] or ["a support device"]
    listed = " and ".join([", ".join(devices[:-1]), devices[-1]] if len(devices) > 1 else devices)
    word = degree(ill.severity)
    text = sentence.format(
        place=place,
        side=side or "small",
        degree=word,
        Degree=word.capitalize(),
        devices=listed,
        Devices=listed.capitalize(),
    )
    return text.replace("There is a mild bilateral", "There is mild bilateral")
