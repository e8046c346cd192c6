"""The files of one run, read together and found to belong together."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vivid_monai.errors import VividError
from vivid_monai.evaluation.examples import Examples
from vivid_monai.evaluation.predictions import Predictions, read_predictions
from vivid_monai.evaluation.results import Results
from vivid_monai.metrics.masked import masked_auroc

# Probabilities are stored to nine digits: two that become one count as a tie where they were none.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class RunFolder:
    """What a page is made of. ``examples``: None where the run has none."""

    path: Path
    results: Results
    predictions: Predictions
    examples: Examples | None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read results.json, predictions.csv and, where it is, examples.npz.

        Raises:
            VividError: one of the first two is missing or broken; they are not of one run.
        """
        results = Results.load(path / "results.json")
        predictions = read_predictions(path / "predictions.csv")
        _check(path, results, predictions)
        examples = path / "examples.npz"
        return cls(path, results, predictions, Examples.load(examples) if examples.is_file() else None)

    def row_of(self, key: str) -> int | None:
        """The row of predictions.csv that is of an image, by its id; None where there is none.

        A transfer task puts the data set before the id, since two hospitals may use one id.
        """
        names = {str(name): row for row, name in enumerate(self.predictions.ids)}
        dataset = self.results.run.get("data", {}).get("dataset", "")
        return names.get(key, names.get(f"{dataset}/{key}"))

    def column(self, field: str) -> tuple[dict[str, NDArray], NDArray]:
        """Probabilities of one field, encoder → (S, N), and its states (N,)."""
        f = self.predictions.fields.index(field)
        return {name: scores[:, :, f] for name, scores in self.predictions.scores.items()}, self.predictions.states[
            :, f
        ]


def images_digest(ids: Sequence[str] | NDArray) -> str:
    """SHA-256 of the ids of the test images in order, as results.json has it."""
    return hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()


def _check(path: Path, results: Results, predictions: Predictions) -> None:
    pairs = {
        "fields": (results.fields, predictions.fields),
        "encoders": (list(results.encoders), list(predictions.scores)),
        "seeds": (results.seeds, predictions.seeds),
        "test images": (results.test["images_sha256"], images_digest(predictions.ids)),
    }
    wrong = [what for what, (stored, found) in pairs.items() if stored != found]
    if not wrong:
        wrong = [
            f"AUROC of {field} ({name})"
            for name, scores in predictions.scores.items()
            for field, value in zip(results.fields, _auroc(scores, predictions.states), strict=True)
            if not _close(results.encoders[name].fields[field]["auroc"].value, value)
        ]
    if wrong:
        raise VividError(
            f"{path}: results.json and predictions.csv are not of one run, they differ in {', '.join(wrong[:4])}; "
            "run the evaluation again"
        )


def _auroc(scores: NDArray, states: NDArray) -> NDArray[np.float64]:
    return np.mean([masked_auroc(seed, states) for seed in scores], axis=0)


def _close(stored: float | None, computed: float) -> bool:
    if stored is None or np.isnan(computed):
        return stored is None and bool(np.isnan(computed))
    return abs(stored - computed) <= _TOLERANCE
