"""From probabilities to findings: decision thresholds, contradictions resolved, tables and records written.

This file goes into every bundle, so that a bundle answers in the same words with and without this package.
"""

import csv
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

NOT_RECORDED = "not-recorded"
"""The patient of a record that a model made: who it is stays in the image."""

ANSWERED, NOT_ASSESSED, UNREADABLE = "answered", "not assessed", "unreadable"
"""Status of an image: findings were predicted; it is out of distribution or its tags forbid it; it is no image."""


class DecisionRules:
    """How the probabilities of a bundle become states and records.

    Args:
        spec: the part "answers" of metadata.json: label_space, modality, anatomy, labeller, labeller_version,
            no_finding, no_finding_compatible, and for every field its name, its ancestors and its thresholds
            absent_below and present_from (None where the field is not answered).

    Attributes:
        fields: names of the fields, in the order of the probabilities.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = dict(spec)
        self.fields: list[str] = [rule["field"] for rule in spec["fields"]]

    @classmethod
    def of_bundle(cls, metadata: str | Path) -> "DecisionRules":
        """Read them from metadata.json."""
        return cls(json.loads(Path(metadata).read_text(encoding="utf-8"))["answers"])

    def states(self, probabilities: Sequence[float]) -> dict[str, str | None]:
        """Field → "present", "absent", "uncertain", or None where the field is not answered.

        Thresholds are chosen field by field, so a kind of opacity can be over its threshold while the opacity itself is
        under its own. What is present stands: its ancestors become at least uncertain, and "No Finding" absent.
        """
        rules = self.spec["fields"]
        states = {one["field"]: _state(float(p), one) for one, p in zip(rules, probabilities, strict=True)}
        present = [one for one in rules if states[one["field"]] == "present"]
        for ancestor in (ancestor for one in present for ancestor in one["ancestors"]):
            if states.get(ancestor) == "absent":
                states[ancestor] = "uncertain"
        nothing = self.spec["no_finding"]
        beside = {one["field"] for one in present} - {nothing, *self.spec["no_finding_compatible"]}
        if states.get(nothing) == "present" and beside:
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


class PredictionsWriter:
    """Writes ``predictions.csv``, a row per image, and ``records.jsonl``, a UMS record per answered image.

    The columns are image, status, for every field its probability and its state, and then `more`. Files that are there
    are overwritten; a line is in its file once written.
    """

    def __init__(self, fields: Sequence[str], table: Path, records: Path, *, more: Sequence[str] = ()) -> None:
        self.fields = fields
        self._table = table.open("w", newline="", encoding="utf-8", buffering=1)
        self._records = records.open("w", encoding="utf-8", buffering=1)
        self._rows = csv.writer(self._table, lineterminator="\n")
        columns = [column for field in fields for column in (field, f"{field}: state")]
        self._rows.writerow(["image", "status", *columns, *more])

    def write(self, image: str, status: str, record: Mapping[str, Any] | None, more: Sequence[Any] = ()) -> None:
        """Add one image; `record` is that of :meth:`DecisionRules.record`, or None where it is not answered."""
        findings = [record["findings"][field] if record else {} for field in self.fields]
        cells = [cell for one in findings for cell in (one.get("score", ""), one.get("state") or "")]
        self._rows.writerow([image, status, *cells, *more])
        if record:
            self._records.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._table.close()
        self._records.close()


class SavePredictionsd(MapTransform):
    """Writes the findings of each image by a :class:`PredictionsWriter`; its ``"path"`` names the image.

    Args:
        keys: the one key that holds the probabilities (F,), followed by the out-of-distribution score of
            :class:`~scripts.ood_score.WithOODScore`, over one half where the image is not assessed.
        metadata: path of the bundle's metadata.json.
        output_dir: where the two files go; it is made where it is missing.
    """

    def __init__(self, keys: KeysCollection, *, metadata: str, output_dir: str) -> None:
        super().__init__(keys)
        self.rules = DecisionRules.of_bundle(metadata)
        self.folder = Path(output_dir)
        self._writer: PredictionsWriter | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self._writer is None:  # not earlier: whoever only reads the config writes nothing
            self.folder.mkdir(parents=True, exist_ok=True)
            table, records = self.folder / "predictions.csv", self.folder / "records.jsonl"
            self._writer = PredictionsWriter(self.rules.fields, table, records)
        for key in self.keys:
            *probabilities, ood_score = d[key].tolist()
            path = str(d["path"])
            record = self.rules.record(path, probabilities) if ood_score <= 0.5 else None
            self._writer.write(path, ANSWERED if record else NOT_ASSESSED, record)
        return d
