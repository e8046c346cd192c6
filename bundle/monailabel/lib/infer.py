"""Findings of an image, by the bundle's own configuration."""

from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.bundle import BundleInferTask
from torch import nn

from lib.scripts import scripts_of
from lib.weights import BUNDLE, Served, Weights

CALIBRATION = "thresholds and calibration are those of the bundle's own weights"
UNLIKE = "unlike the images that the model was trained on"
_WRITERS = ("SavePredictionsd", "SaveAnswersd")  # the latter in bundles of vivid-monai 0.1


class FindingsInfer(BundleInferTask):
    """configs/inference.json of a bundle, answered as JSON: per finding its probability and its state, and the record.

    Args:
        bundle: folder of a bundle of `vivid bundle`.
        conf: of the app.
        rules: the bundle's ``scripts.postprocessing.DecisionRules``.
        weights: which weights answer; asked anew at every image.
    """

    def __init__(self, bundle: Path, conf: dict[str, str], rules: Any, weights: Weights) -> None:
        self.bundle, self.rules, self.weights = bundle, rules, weights
        self._loaded: tuple[Served, str, nn.Module] | None = None
        super().__init__(str(bundle), conf, type=InferType.CLASSIFICATION, add_post_restore=False)
        self._config.pop("model_filename")  # offers a choice of files that this app does not give
        if accept := conf.get("accept"):
            self.bundle_config["accept"] = accept.split(",")

    def info(self) -> dict[str, Any]:
        return {**super().info(), "weights": self.weights.served().name, "calibration": CALIBRATION}

    def get_path(self, validate: bool = True) -> str:
        return str(self.weights.served().path)

    def post_transforms(self, data: Any = None) -> list[Any]:
        """Those of the bundle, but the one that writes files."""
        return [one for one in super().post_transforms(data) if type(one).__name__ not in _WRITERS]

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[None, dict[str, Any]]:
        """Answer one image.

        Raises:
            HTTPException: 422, why the image cannot be read, in one line.
        """
        try:
            return super().__call__(request, callbacks)
        except Exception as error:
            # By name: MONAI Label loads the bundle's modules again and again, and so makes several of each class.
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if "NotAssessed" in kinds:
                return self._refused(str(error))
            if "VividError" in kinds:
                raise HTTPException(422, " ".join(str(error).split())) from error
            raise

    def findings(self, path: str) -> dict[str, dict[str, Any]]:
        """Field → {"probability": …, "state": …} of an image file.

        Raises:
            HTTPException: 422, the image cannot be read or is not assessed.
        """
        answer = self({"image": path})[1]
        if answer["status"] != "answered":
            raise HTTPException(422, f"{answer['status']}: {answer['reason']}")
        return answer["findings"]

    def writer(self, data: dict[str, Any], extension: Any = None, dtype: Any = None) -> tuple[None, dict[str, Any]]:
        n_fields, name = len(self.rules.fields), self._loaded[0].name
        values = data[self.output_label_key].tolist()
        probabilities, unlikeness = values[:n_fields], values[n_fields:]
        if any(one > 0.5 for one in unlikeness):  # the bundle's own rule (scripts/ood_score.py)
            return self._refused(UNLIKE)
        record = self.rules.record(Path(data["image_path"]).name, probabilities, *filter(None, [data.get("accepted")]))
        if name != BUNDLE:
            record["provenance"]["labeller_version"] += f"+{name}"
        findings = {
            field: {"probability": round(probability, 6), "state": record["findings"][field]["state"]}
            for field, probability in zip(self.rules.fields, probabilities, strict=True)
        }
        common = {"weights": name, "calibration": CALIBRATION}
        return None, {"status": "answered", "findings": findings, "record": record, **common}

    def _refused(self, reason: str) -> tuple[None, dict[str, Any]]:
        common = {"weights": self.weights.served().name, "calibration": CALIBRATION}
        return None, {"status": "not assessed", "reason": reason, "findings": {}, "record": None, **common}

    def _get_network(self, device: str, data: Any) -> nn.Module:
        served = self.weights.served()
        if self._loaded is None or self._loaded[:2] != (served, device):
            self._loaded = (served, device, self._load(served).to(device).eval())
        return self._loaded[2]

    def _load(self, weights: Served) -> nn.Module:
        """The bundle's ``network`` with these weights in its classifier, ``network_def``."""
        config = self._load_bundle_config(self.bundle_path, self.bundle_config_path)
        with scripts_of(self.bundle):
            whole, classifier = (config.get_parsed_content(name) for name in ("network", "network_def"))
        state = torch.load(weights.path, map_location="cpu", weights_only=True)
        classifier.load_state_dict(state.get("model", state))
        return whole
