"""Training on the stored findings, by the bundle's own configuration."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from lib.agreement import macro_auroc
from lib.infer import CALIBRATION, FindingsInfer
from lib.requested import quoted
from lib.weights import Weights

LABELS = {"present": 1, "absent": 0}
"""Of the states that are trained on. Uncertain, null and unsaid are -1, which the bundle's loss leaves out."""
OPTIONS = {"max_epochs": 10, "learning_rate": 1e-4, "batch_size": 16, "val_split": 0.2}


@dataclass(frozen=True)
class Case:
    """An image with findings; ``group`` is its patient or, where that is not known, its content."""

    image: str
    findings: dict[str, dict[str, Any]]
    group: str

    def labels(self, fields: Sequence[str]) -> list[int]:
        return [LABELS.get(self.findings.get(field, {}).get("state"), -1) for field in fields]

    def is_validation(self, share: float) -> bool:
        """Decided by the group alone: no patient is in both, and no image moves to training when others come."""
        return int(hashlib.sha256(self.group.encode()).hexdigest()[:12], 16) / 16**12 < share


class Training(TrainTask):
    """configs/train.json of a bundle, from the bundle's own weights, on all findings that are stored.

    Args:
        bundle: folder of the bundle.
        fields: of the bundle, in order.
        infer: the model, to tell what the training was good for.
        weights: where the new weights go.
    """

    def __init__(self, bundle: Path, fields: Sequence[str], infer: FindingsInfer, weights: Weights) -> None:
        super().__init__("Train the bundle's weights further on the stored findings")
        self.bundle, self.fields, self.infer, self.weights = bundle, fields, infer, weights

    def config(self) -> dict[str, Any]:
        return dict(OPTIONS)

    def stats(self) -> dict[str, Any]:
        """What each of the trained weights was trained on."""
        return {
            one.name: json.loads(one.path.with_name("training.json").read_text(encoding="utf-8"))
            for one in self.weights.trained()
        }

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, serve the new weights from now on, and tell what they were trained on.

        Raises:
            HTTPException: 422, wrong options or too few findings; 409, another training runs; 500, it failed.
        """
        options = {name: _number(name, request.get(name, default), type(default)) for name, default in OPTIONS.items()}
        cases = [one for one in self._cases(datastore) if set(one.labels(self.fields)) != {-1}]
        validation = [one for one in cases if one.is_validation(options["val_split"])]
        training = [one for one in cases if one not in validation]
        self._check(training, validation)
        before = {self.weights.served().name: self._auroc(validation)}
        try:
            with self.weights.new() as folder:
                self._train(folder, training, validation, options)
                told = self._told(training, validation, options)
                (folder / "training.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        except BlockingIOError as error:
            raise HTTPException(409, f"not trained: {error}") from error
        served = self.weights.served()
        told = {
            "weights": served.name,
            **told,
            "validation_macro_auroc": before | {served.name: self._auroc(validation)},
        }
        served.path.with_name("training.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        return told

    def _cases(self, datastore: Datastore) -> list[Case]:
        found = []
        for one in datastore.datalist():
            findings = json.loads(Path(one["label"]).read_text(encoding="utf-8"))["findings"]
            found.append(Case(one["image"], findings, _group(Path(one["image"]))))
        return found

    def _check(self, training: Sequence[Case], validation: Sequence[Case]) -> None:
        if not training:
            raise HTTPException(422, "not trained: there are no findings, present or absent, to train on")
        columns = zip(*(one.labels(self.fields) for one in validation), strict=True)
        if not any({0, 1} <= set(column) for column in columns):
            raise HTTPException(
                422,
                f"not trained: of {len(training) + len(validation)} images with findings, {len(validation)} are held "
                "out for validation, and no field is present in one of them and absent in another; store more "
                "findings, or hold out more of them (val_split)",
            )

    def _train(
        self, folder: Path, training: Sequence[Case], validation: Sequence[Case], options: dict[str, Any]
    ) -> None:
        lists = {
            name: [{"image": one.image, "label": one.labels(self.fields)} for one in cases]
            for name, cases in (("training", training), ("validation", validation))
        }
        (folder / "datalist.json").write_text(json.dumps(lists), encoding="utf-8")
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.json"]
        command += ["--dataset_dir", str(folder), "--output_dir", str(folder), "--epochs", str(options["max_epochs"])]
        command += ["--learning_rate", str(options["learning_rate"]), "--batch_size", str(options["batch_size"])]
        with (folder / "training.log").open("w", encoding="utf-8") as log:
            done = subprocess.run(command, cwd=self.bundle, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode != 0 or not (folder / "model.pt").is_file():
            last = (folder / "training.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise HTTPException(500, f"training failed: {''.join(last)} (all of it: {folder / 'training.log'})")

    def _told(self, training: Sequence[Case], validation: Sequence[Case], options: dict[str, Any]) -> dict[str, Any]:
        columns = list(zip(*(one.labels(self.fields) for one in training), strict=True))
        return {
            "started_from": self.weights.original.name,
            "training_images": len(training),
            "validation_images": len(validation),
            "labels": {
                field: {"present": column.count(1), "absent": column.count(0)}
                for field, column in zip(self.fields, columns, strict=True)
            },
            "options": options,
            "calibration": CALIBRATION,
        }

    def _auroc(self, cases: Sequence[Case]) -> float | None:
        pairs = []
        for one in cases:
            with suppress(HTTPException):  # not assessed: nothing is answered that could be right or wrong
                pairs.append((self.infer.findings(one.image), one.findings))
        return macro_auroc(self.fields, pairs)


def _group(path: Path) -> str:
    content = path.read_bytes()
    if content[128:132] == b"DICM":
        patient = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID")
        if patient:
            return f"patient {patient}"
    return f"image {hashlib.sha256(content).hexdigest()}"


def _number(name: str, value: Any, kind: type) -> Any:
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if not 0 < number < math.inf or (name == "val_split" and number >= 1):
        raise HTTPException(422, f"not trained: {name} is {quoted(value)}")
    return number
