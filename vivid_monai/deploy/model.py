"""The classifier of a bundle, read back from its folder: pixels in, calibrated probabilities out."""

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vivid_monai.data.preprocess import Preprocess
from vivid_monai.deploy.answers import Answers
from vivid_monai.deploy.appearance import appearance
from vivid_monai.deploy.assessment import Assessment
from vivid_monai.deploy.network import from_network
from vivid_monai.errors import VividError
from vivid_monai.networks.classifier import ViTClassifier

WEIGHTS, ASSESSMENT = "models/model.pt", "models/assessment.safetensors"


@dataclass(frozen=True)
class BundleModel:
    """What a bundle answers with. No config of the bundle is evaluated and no code of it is run.

    Attributes:
        name, version: of the bundle.
        fingerprint: SHA-256 of its weights.
        assessment: tells of an image whether it is answered.
        views: view positions that it was trained on; empty where they are not known.
    """

    name: str
    version: str
    fingerprint: str
    classifier: ViTClassifier
    preprocess: Preprocess
    answers: Answers
    assessment: Assessment
    views: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read configs/metadata.json and the files in models/ that it names.

        Raises:
            VividError: not a bundle of ours, files that are missing, damaged, or not those of its metadata.
        """
        metadata = _metadata(folder)
        try:
            own = metadata["vivid"]
            content = {name: _content(folder / name, own["sha256"][name]) for name in (WEIGHTS, ASSESSMENT)}
            state = torch.load(io.BytesIO(content[WEIGHTS]), map_location="cpu", weights_only=True)
            return cls(
                name=folder.resolve().name,
                version=str(metadata["version"]),
                fingerprint=own["sha256"][WEIGHTS],
                classifier=from_network(state, config=own["vit"], pool=own["pool"]),
                preprocess=Preprocess.from_dict(own["preprocess"]),
                answers=Answers(metadata["answers"]),
                assessment=Assessment.load(folder / ASSESSMENT),
                views=tuple(own["views"]),
            )
        except (KeyError, TypeError, AttributeError, pickle.UnpicklingError, RuntimeError) as error:
            raise VividError(f"{folder}: is not a bundle of `vivid bundle`: {type(error).__name__}: {error}") from error

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Images (B, C, H, W), preprocessed → probabilities (B, F), and distances (B,) from the training images."""
        features = self.classifier.features(images)
        probabilities = torch.sigmoid(self.classifier.head(features).double())
        rows = torch.cat((features, appearance(images)), dim=1)
        return probabilities.numpy(), self.assessment.distance(rows.numpy())


def _content(path: Path, digest: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise VividError(f"{path}: this file of the bundle cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise VividError(
            f"{path}: is not the file that configs/metadata.json was written with, but damaged or trained further: "
            "build the bundle again, or run configs/inference.json, which takes any weights"
        )
    return content


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / "configs" / "metadata.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VividError(f"{path}: cannot be read: {error}; give the folder of a bundle of `vivid bundle`") from error
    if not isinstance(content, dict) or not {"vivid", "answers", "version"} <= content.keys():
        raise VividError(f"{folder}: is a MONAI bundle, but none of `vivid bundle`")
    own = content["vivid"]
    if not isinstance(own, dict) or own.get("metadata_sha256", "") not in (None, metadata_sha256(content)):
        raise VividError(
            f"{path}: has changed since the bundle was built; build it again or, if the change was meant, set "
            "metadata_sha256 in its part vivid to null"
        )
    return content


def metadata_sha256(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of what a metadata.json says, whatever its layout; its own key metadata_sha256 does not count."""
    own = {name: value for name, value in metadata["vivid"].items() if name != "metadata_sha256"}
    return hashlib.sha256(json.dumps({**metadata, "vivid": own}, sort_keys=True).encode()).hexdigest()
