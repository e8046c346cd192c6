"""From probabilities to an answer: states by thresholds, contradictions resolved, as a record in UMS form.

This file goes into every bundle, so that a bundle answers in the same words with and without this package.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOT_RECORDED = "not-recorded"
"""The patient of a record that a model made: who it is stays in the image."""


class Answers:
    """What the metadata of a bundle says of its answers.

    Args:
        spec: the part "answers" of metadata.json: label_space, modality, anatomy, labeller, labeller_version,
            no_finding, no_finding_compatible, and for every field its name, its ancestors and its thresholds
            absent_below and present_from (None where it is not answered).
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = dict(spec)
        self.fields: list[str] = [rule["field"] for rule in spec["fields"]]

    @classmethod
    def of_bundle(cls, metadata: str | Path) -> "Answers":
        """Read them from metadata.json."""
        return cls(json.loads(Path(metadata).read_text(encoding="utf-8"))["answers"])

    def states(self, probabilities: Sequence[float]) -> dict[str, str | None]:
        """Field → "present", "absent", "uncertain", or None where the field is not answered.

        Thresholds are chosen field by field, so that a kind of opacity can be present while the opacity is called
        absent. What is found stands: its ancestors are at least uncertain, and there is no "No Finding" beside it.
        """
        rules = {rule["field"]: rule for rule in self.spec["fields"]}
        states = {
            field: _state(float(probability), rules[field])
            for field, probability in zip(self.fields, probabilities, strict=True)
        }
        present = [field for field, state in states.items() if state == "present"]
        for field in present:
            for ancestor in rules[field]["ancestors"]:
                if states.get(ancestor) == "absent":
                    states[ancestor] = "uncertain"
        nothing = self.spec["no_finding"]
        if states.get(nothing) == "present" and set(present) - {nothing, *self.spec["no_finding_compatible"]}:
            states[nothing] = "absent"
        return states

    def record(self, image: str, probabilities: Sequence[float]) -> dict[str, Any]:
        """The record of one image, as a JSON object of UMS 1.0; fields that are not answered have no score."""
        findings = {
            field: {"state": state} | ({} if state is None else {"score": round(float(probability), 6)})
            for (field, state), probability in zip(self.states(probabilities).items(), probabilities, strict=True)
        }
        return {
            "ums_version": "1.0",
            "id": image,
            "patient_id": NOT_RECORDED,
            "label_space": self.spec["label_space"],
            "image": {"path": image},
            "modality": self.spec["modality"],
            "anatomy": self.spec["anatomy"],
            "view": None,
            "findings": findings,
            "provenance": {
                "dataset": "predictions",
                "labeller": self.spec["labeller"],
                "labeller_version": self.spec["labeller_version"],
                "source": "model",
            },
        }


def _state(probability: float, rule: Mapping[str, Any]) -> str | None:
    if rule["present_from"] is None:
        return None
    if probability >= rule["present_from"]:
        return "present"
    return "absent" if probability < rule["absent_below"] else "uncertain"
