"""What a reader may say of an image, and the record that is made of it."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi import HTTPException

from lib.requested import quoted

STATES = ("present", "absent", "uncertain", None)


class Rules:
    """The fields of a bundle, and how they hang together.

    Args:
        spec: the part "answers" of the bundle's metadata.json.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = spec
        self.ancestors = {rule["field"]: rule["ancestors"] for rule in spec["fields"]}

    def record(self, image: str, text: str | bytes) -> dict[str, Any]:
        """The record (JSON object of UMS 1.0) of what a reader said of an image.

        Args:
            image: file name of the image.
            text: JSON: {"findings": {field: "present" | "absent" | "uncertain" | null, …}, "reader": name}; the
                reader may be left out, and so may fields that the reader says nothing about.

        Raises:
            HTTPException: 422, what is wrong in one line.
        """
        said = _object(text)
        if unknown := said.keys() - {"findings", "reader"}:
            raise _refused(f"only findings and reader can be stored, not {', '.join(map(quoted, sorted(unknown)[:3]))}")
        findings, reader = said.get("findings"), said.get("reader")
        if not isinstance(findings, dict) or not findings:
            raise _refused('findings are missing: {"findings": {"Edema": "present"}, "reader": "…"}')
        if reader is not None and (not isinstance(reader, str) or not reader.strip()):
            raise _refused("reader must be a name")
        self._check(findings)
        return {
            "ums_version": "1.0",
            "id": image,
            "patient_id": "not-recorded",
            "label_space": self.spec["label_space"],
            "image": {"path": image},
            "modality": self.spec["modality"],
            "anatomy": self.spec["anatomy"],
            "view": None,
            "findings": {field: {"state": findings[field]} for field in self.ancestors if field in findings},
            "provenance": {
                "dataset": "readers",
                "labeller": "MONAI Label",
                "labeller_version": version("monailabel"),
                "source": "human",
                **({"reader": reader.strip()} if reader else {}),
            },
        }

    def _check(self, findings: Mapping[str, Any]) -> None:
        for field, state in findings.items():
            if field not in self.ancestors:
                raise _refused(f"{quoted(field)} is no field of this model; its fields are {', '.join(self.ancestors)}")
            if state not in STATES:
                raise _refused(f"{field}: {quoted(state)} is no state; say present, absent, uncertain or null")
        present = [field for field, state in findings.items() if state == "present"]
        for field in present:
            for ancestor in self.ancestors[field]:
                if findings.get(ancestor) == "absent":
                    raise _refused(f"{field} is present and {ancestor}, of which it is a kind, absent")
        nothing = self.spec["no_finding"]
        if nothing in present and (other := set(present) - {nothing, *self.spec["no_finding_compatible"]}):
            raise _refused(f"{nothing} is present beside {', '.join(sorted(other))}")


def _object(text: str | bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise _refused(f"{', '.join(sorted(twice))}: said twice")
        return dict(pairs)

    try:
        said = json.loads(text, object_pairs_hook=once)
        json.dumps(said, ensure_ascii=False).encode()  # half of a surrogate pair cannot be stored
    except (ValueError, RecursionError) as error:
        raise _refused(f"not JSON: {error}") from error
    if not isinstance(said, dict):
        raise _refused('not a JSON object: {"findings": {"Edema": "present"}, "reader": "…"}')
    return said


def _refused(reason: str) -> HTTPException:
    sayable = reason.encode(errors="backslashreplace").decode()  # half of a surrogate pair is quoted as it was sent
    return HTTPException(422, f"not stored: {' '.join(sayable.split())}")
