"""How unsure the model is of an image, and the image that it is least sure of."""

import math
import os
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.infer import FindingsInfer


def mean_entropy(findings: dict[str, dict[str, Any]]) -> float:
    """Mean binary entropy of the calibrated probabilities, in bits: 0 sure of every finding, 1 of none.

    Uncertainty sampling by entropy (Settles, Active Learning Literature Survey, 2009, 3.1), summed over the labels as
    if they were independent, over their number. Fields that the bundle does not answer (it could not tell them from
    chance) are left out: their probabilities are noise. Where it answers none, all count.
    """
    answered = [one for one in findings.values() if one["state"] is not None] or list(findings.values())
    return sum(_entropy(one["probability"]) for one in answered) / len(answered)


def _entropy(p: float) -> float:
    return 0.0 if p in (0, 1) else -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


class Uncertainty:
    """The uncertainty of image files, each computed once for the weights that are served."""

    def __init__(self, infer: FindingsInfer) -> None:
        self.infer = infer
        self._known: dict[tuple[str, str, int], float] = {}

    def __call__(self, path: str) -> float:
        """Raises HTTPException (422) where the image cannot be read or is not assessed."""
        key = (self.infer.weights.served().name, path, os.stat(path).st_mtime_ns)
        if key not in self._known:
            self._known[key] = mean_entropy(self.infer.findings(path))
        return self._known[key]

    def of_images(self, images: list[str], datastore: Datastore) -> tuple[dict[str, float], dict[str, str]]:
        """Image → uncertainty, and image → why it is not answered."""
        values, not_answered = {}, {}
        for image in sorted(images):
            try:
                values[image] = round(self(datastore.get_image_uri(image)), 6)
            except HTTPException as error:
                not_answered[image] = str(error.detail)
        return values, not_answered


class LeastSure(Strategy):
    """Offers the image without findings whose mean entropy is largest."""

    def __init__(self, uncertainty: Uncertainty) -> None:
        super().__init__("The image without findings that the model is least sure of (mean entropy, bits)")
        self.uncertainty = uncertainty

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        values, not_answered = self.uncertainty.of_images(datastore.get_unlabeled_images(), datastore)
        if not values:
            return None
        image = max(values, key=values.__getitem__)
        return {"id": image, "uncertainty": values[image], "of_images": len(values), "not_answered": not_answered}
