"""Findings of an image, by the bundle's own configuration."""

from pathlib import Path
from typing import Any

from fastapi import HTTPException
from lib.weights import BUNDLE, Weights
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask

CALIBRATION = "thresholds and calibration are those of the bundle's own weights"


class FindingsInfer(BundleInferTask):
    """configs/inference.json of a bundle, answered as JSON: per finding its probability and its state, and the record.

    Args:
        bundle: folder of a bundle of `vivid bundle`.
        conf: of the app.
        answers: the bundle's ``scripts.answers.Answers``.
        weights: which weights answer; asked anew at every image.
    """

    def __init__(self, bundle: Path, conf: dict[str, str], answers: Any, weights: Weights) -> None:
        self.answers, self.weights = answers, weights
        self.served = weights.served()
        super().__init__(str(bundle), conf, type=InferType.CLASSIFICATION, add_post_restore=False, load_strict=True)
        self._config.pop("model_filename")  # a default by which MONAI Label would always take models/model.pt

    def info(self) -> dict[str, Any]:
        return {**super().info(), "weights": self.weights.served().name, "calibration": CALIBRATION}

    def get_path(self, validate: bool = True) -> str:
        self.served = self.weights.served()
        return str(self.served.path)

    def post_transforms(self, data: Any = None) -> list[Any]:
        """Those of the bundle, but the one that writes files."""
        return [one for one in super().post_transforms(data) if type(one).__name__ != "SaveAnswersd"]

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[None, dict[str, Any]]:
        """Answer one image.

        Raises:
            HTTPException: 422, why the image cannot be read, in one line.
        """
        try:
            return super().__call__(request, callbacks)
        except Exception as error:
            # By name: MONAI Label loads the bundle's modules again and again, and so makes several of this class.
            if any(kind.__name__ == "VividError" for kind in type(error).__mro__):
                raise HTTPException(422, " ".join(str(error).split())) from error
            raise

    def findings(self, path: str) -> dict[str, dict[str, Any]]:
        """Field → {"probability": …, "state": …} of an image file."""
        return self({"image": path})[1]["findings"]

    def writer(self, data: dict[str, Any], extension: Any = None, dtype: Any = None) -> tuple[None, dict[str, Any]]:
        probabilities = data[self.output_label_key].tolist()
        record = self.answers.record(Path(data["image_path"]).name, probabilities)
        if self.served.name != BUNDLE:
            record["provenance"]["labeller_version"] += f"+{self.served.name}"
        findings = {
            field: {"probability": round(probability, 6), "state": record["findings"][field]["state"]}
            for field, probability in zip(self.answers.fields, probabilities, strict=True)
        }
        return None, {
            "findings": findings,
            "record": record,
            "weights": self.served.name,
            "calibration": CALIBRATION,
        }
