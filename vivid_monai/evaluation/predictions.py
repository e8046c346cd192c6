"""Every test image's states and probabilities in one table, so that any number can be computed again."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy.special import expit

from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.head import LinearHead
from vivid_monai.files import whole_file
from vivid_monai.ums.states import decode


def write_predictions(path: Path, results: Mapping[str, tuple[LinearHead, Features]], fields: Sequence[str]) -> None:
    """Write a CSV with a row per image.

    Columns: ``id``; ``patient_id``; ``state:<field>``, empty where it cannot be answered; and for each encoder
    ``<encoder>:<field>``, the probability that the field is present.

    Args:
        results: encoder name → (head, features), all of the same images in the same order.

    Raises:
        VividError: the file cannot be written.
    """
    test = next(iter(results.values()))[1]
    probabilities = {name: expit(head.logits(features.x)) for name, (head, features) in results.items()}
    columns = ["id", "patient_id", *(f"{kind}:{field}" for kind in ("state", *results) for field in fields)]
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for i, (key, patient) in enumerate(zip(test.ids, test.patients, strict=True)):
            states = [decode(int(code)) or "" for code in test.states[i]]
            scores = [f"{p:.6g}" for values in probabilities.values() for p in values[i]]
            writer.writerow([key, patient, *states, *scores])
