"""How well the model agrees with what readers stored."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import HTTPException
from monai.metrics import compute_roc_auc
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.infer import FindingsInfer
from lib.uncertainty import Uncertainty
from lib.weights import Weights

Findings = Mapping[str, Mapping[str, Any]]


def auroc(field: str, pairs: Sequence[tuple[Findings, Findings]]) -> float | None:
    """AUROC of a field over (model's findings, reader's findings); None unless readers said present and absent."""
    told = [(model[field]["probability"], reader[field]["state"]) for model, reader in pairs if field in reader]
    known = [(probability, state == "present") for probability, state in told if state in ("present", "absent")]
    labels = torch.tensor([int(present) for _, present in known])
    if not 0 < labels.sum() < len(labels):
        return None
    return float(compute_roc_auc(torch.tensor([probability for probability, _ in known]), labels))


def macro_auroc(fields: Sequence[str], pairs: Sequence[tuple[Findings, Findings]]) -> float | None:
    """Mean of the AUROCs there are."""
    values = [value for field in fields if (value := auroc(field, pairs)) is not None]
    return float(np.mean(values)) if values else None


class Agreement(ScoringMethod):
    """AUROC per field, and the share of images where model and reader say the same state."""

    def __init__(self, infer: FindingsInfer, fields: Sequence[str], weights: Weights) -> None:
        super().__init__("AUROC and agreement of the model with the stored findings, field by field")
        self.infer, self.fields, self.weights = infer, fields, weights

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        served, pairs, not_answered, trained_on = self.weights.served(), [], {}, 0
        learned = self._learned_from()
        for case in datastore.datalist():
            if case["image"] in learned:
                trained_on += 1
                continue
            try:
                model = self.infer.findings(case["image"])
            except HTTPException as error:
                not_answered[Path(case["image"]).name] = str(error.detail)
                continue
            pairs.append((model, json.loads(Path(case["label"]).read_text(encoding="utf-8"))["findings"]))
        return {
            "weights": served.name,
            "images": len(pairs),
            "left_out_as_trained_on": trained_on,
            "not_answered": not_answered,
            "macro_auroc": macro_auroc(self.fields, pairs),
            "fields": {field: self._field(field, pairs) for field in self.fields},
        }

    def _field(self, field: str, pairs: Sequence[tuple[Findings, Findings]]) -> dict[str, Any]:
        states = [(model[field]["state"], reader[field]["state"]) for model, reader in pairs if field in reader]
        both = [(model, reader) for model, reader in states if model is not None and reader is not None]
        return {
            "present": sum(reader == "present" for _, reader in states),
            "absent": sum(reader == "absent" for _, reader in states),
            "auroc": auroc(field, pairs),
            "compared": len(both),
            "same_state": sum(model == reader for model, reader in both) / len(both) if both else None,
        }

    def _learned_from(self) -> set[str]:
        path = self.weights.served().path.with_name("datalist.json")
        return {one["image"] for one in json.loads(path.read_text())["training"]} if path.is_file() else set()


class UncertaintyOfImages(ScoringMethod):
    """The mean entropy of every image."""

    def __init__(self, uncertainty: Uncertainty) -> None:
        super().__init__("Mean entropy (bits) of the model's probabilities, image by image")
        self.uncertainty = uncertainty

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        values, not_answered = self.uncertainty.of_images(datastore.list_images(), datastore)
        return {"weights": self.uncertainty.infer.weights.served().name, "images": values, "not_answered": not_answered}
