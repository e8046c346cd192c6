"""From probabilities to findings: decision thresholds, contradictions resolved, tables and records written.

This file goes into every bundle, so that a bundle answers in the same words with and without this package.
"""

import csv
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from monai.config import KeysCollection
from monai.transforms import MapTransform

from vivid_monai.errors import VividError, cut, printable

NOT_RECORDED = "not-recorded"
"""The patient of a record that a model made: who it is stays in the image."""

ANSWERED, NOT_ASSESSED, UNREADABLE = "answered", "not assessed", "unreadable"
"""Status of an image: findings were predicted; it is out of distribution or its tags forbid it; it is no image."""
TABLES = ("predictions.csv", "records.jsonl", "not_assessed.csv", "unreadable.csv")
"""What is written of images: all of them, the answered ones, and the others with the reason."""
UNLIKE = "unlike the images that the model was trained on"


class DecisionRules:
    """How the probabilities of a bundle become states and records.

    Args:
        spec: the part "answers" of metadata.json: label_space, modality, anatomy, labeller, labeller_version,
            no_finding, no_finding_compatible, and for every field its name, its ancestors and its thresholds
            absent_below and present_from (None where the field is not answered).

    Attributes:
        fields: names of the fields, in the order of the probabilities.

    Raises:
        VividError: thresholds that are missing, no numbers or in the wrong order; what is no text.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.spec = dict(spec)
        try:
            json.dumps(self.spec, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise VividError("a part of the decision rules is no text: it holds half of a surrogate pair") from error
        self.fields: list[str] = [rule["field"] for rule in spec["fields"]]
        for rule in spec["fields"]:
            low, high = (rule.get(name, "missing") for name in ("absent_below", "present_from"))
            numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (low, high))
            if not (low is high is None or (numbers and low <= high)):
                field = cut(printable(str(rule["field"])), 60)
                raise VividError(f"{field}: absent_below and present_from must be two numbers in order, or both null")

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

    def record(self, image: str, probabilities: Sequence[float], accepted: str = "") -> dict[str, Any]:
        """The record of one image, as a JSON object of UMS 1.0; fields that are not answered have no score.

        Args:
            image: its path; bytes that are not UTF-8 are escaped.
            accepted: tags that forbade an answer and were overridden; they go into `labeller_version`.
        """
        image = printable(image)
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
                "labeller_version": self.spec["labeller_version"] + (f"+accept:{accepted}" if accepted else ""),
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
    """Writes :data:`TABLES`: a row per image, a UMS record per answered one, and lists of the others with the reason.

    The columns of the first are image, status, for every field its probability and its state, and then `more`. Lines
    are added to what is in the files, and each is in its file once written; a list without rows is not made.

    Args:
        fields: of the model, in order.
        places: of each table its file.
    """

    def __init__(self, fields: Sequence[str], places: Mapping[str, Path], *, more: Sequence[str] = ()) -> None:
        self.fields, self.places = fields, places
        columns = [column for field in fields for column in (field, f"{field}: state")]
        self._headers = {TABLES[0]: ["image", "status", *columns, *more]}
        self._files: dict[str, TextIO] = {}
        for name in TABLES[:2]:
            self._file(name)

    def write(
        self, image: str, status: str, record: Mapping[str, Any] | None, reason: str = "", more: Sequence[Any] = ()
    ) -> None:
        """Add one image; `record` is that of :meth:`DecisionRules.record`, or None where it is not answered."""
        findings = [record["findings"][field] if record else {} for field in self.fields]
        cells = [cell for one in findings for cell in (one.get("score", ""), one.get("state") or "")]
        self._row(TABLES[0], [image, status, *cells, *more])
        if record:
            self._file(TABLES[1]).write(json.dumps(record, ensure_ascii=False) + "\n")
        elif status != ANSWERED:
            self._row(TABLES[2] if status == NOT_ASSESSED else TABLES[3], [image, reason])

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _row(self, name: str, cells: Sequence[Any]) -> None:
        rows = csv.writer(self._file(name), lineterminator="\n")
        rows.writerow([printable(one) if isinstance(one, str) else one for one in cells])

    def _file(self, name: str) -> TextIO:
        if name not in self._files:
            file = self._files[name] = self.places[name].open("a", newline="", encoding="utf-8", buffering=1)
            if name != TABLES[1] and not file.tell():
                self._row(name, self._headers.get(name, ["image", "reason"]))
        return self._files[name]


class SavePredictionsd(MapTransform):
    """Writes what becomes of each image by a :class:`PredictionsWriter`; its ``"path"`` names the image.

    Args:
        keys: the one key that holds the probabilities (F,), followed by the out-of-distribution score of
            :class:`~vivid_monai.deploy.ood_score.WithOODScore`, over one half where the image is not assessed. Other
            images are not assessed, or unreadable, by their ``"status"`` of
            :class:`~vivid_monai.deploy.inputs.InputDataset`.
        metadata: path of the bundle's metadata.json.
        output_dir: where the tables go; it is made where it is missing, and tables that are there are replaced.
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
            places = {name: self.folder / name for name in TABLES}
            for place in places.values():
                place.unlink(missing_ok=True)
            self._writer = PredictionsWriter(self.rules.fields, places)
        for key in self.keys:
            *probabilities, ood_score = d[key].tolist()
            path, status, reason = str(d["path"]), d.get("status", ANSWERED), d.get("reason", "")
            if status == ANSWERED and not ood_score <= 0.5:
                status, reason = NOT_ASSESSED, UNLIKE
            answered = status == ANSWERED
            record = self.rules.record(path, probabilities, d.get("accepted", "")) if answered else None
            self._writer.write(path, status, record, reason)
        return d
