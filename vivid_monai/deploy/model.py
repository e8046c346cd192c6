"""The classifier of a bundle, loaded from its folder: pixels in, calibrated probabilities out."""

import hashlib
import io
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from vivid_monai.deploy.onnx import OnnxClassifier
from vivid_monai.deploy.ood import OODDetector
from vivid_monai.deploy.ood_score import thumbnail_features
from vivid_monai.deploy.postprocessing import DecisionRules
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import BACKBONES, Classifier
from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space, parse_label_space

WEIGHTS, ONNX, OOD = "models/model.pt", "models/model.onnx", "models/assessment.safetensors"
RUNTIMES = {"onnx": "ONNX Runtime", "torch": "PyTorch"}
"""What can run a bundle, and its name."""
_FILES = {"onnx": ONNX, "torch": WEIGHTS}


class BundleModel:
    """What a bundle predicts with. No config of the bundle is evaluated and no code of it is run.

    Attributes:
        metadata: of configs/metadata.json.
        name, version: of the bundle.
        runtime: what runs it, a key of :data:`RUNTIMES`.
        fingerprint: SHA-256 of the file that answers.
        preprocess: what an image goes through before it.
        rules: from probabilities to states.
        fields: names of the findings, in the order of the probabilities.
        ood: detects images that are not to be assessed.
        trained_on: the words of the training images' columns "modality", "anatomy" and "view"; no view: not known.
    """

    def __init__(self, folder: Path, *, runtime: str | None = None) -> None:
        """Read configs/metadata.json and the files in models/ that it names and the runtime needs.

        Args:
            runtime: "onnx" (ONNX Runtime), "torch" (PyTorch) or None: ONNX Runtime, where the bundle was built for it.

        Raises:
            VividError: not a bundle of ours, files that are missing, damaged, or not those of its metadata; a bundle
                without a file for the runtime.
        """
        self.folder, self.metadata = folder, _metadata(folder)
        own, spec = self.metadata["vivid"], self.metadata["answers"]
        with self._explained():
            self.runtime = runtime or next(name for name, file in _FILES.items() if file in own["sha256"])
            file = _FILES[self.runtime]
            if file not in own["sha256"]:
                raise VividError(f"{folder}: was built without {file}; build it with --onnx float32 or int8")
            self.name, self.version = folder.resolve().name, str(self.metadata["version"])
            self.fingerprint: str = own["sha256"][file]
            self.preprocess = Preprocess.from_dict(own["preprocess"])
            self.rules = DecisionRules(spec)
            self.fields = tuple(self.rules.fields)
            self.trained_on: dict[str, list[str]] = {
                "modality": own.get("modalities", [spec["modality"]]),  # of one value in bundles of before version 2
                "anatomy": own.get("anatomies", [spec["anatomy"]]),
                "view": own["views"],
            }
            self._content(OOD)
            self.ood = OODDetector.load(folder / OOD)
            if self.runtime == "onnx":
                self._content(ONNX)
            self._network: Any = OnnxClassifier(folder / ONNX) if self.runtime == "onnx" else self.classifier

    @cached_property
    def classifier(self) -> Classifier:
        """The classifier in PyTorch, whatever the runtime; raises as the bundle does when it is loaded."""
        own = self.metadata["vivid"]
        with self._explained():
            state = torch.load(io.BytesIO(self._content(WEIGHTS)), map_location="cpu", weights_only=True)
            if "vit" in own:  # a bundle of version 1
                state, own = _from_version_1(state, own["vit"]), {**own, "backbone": "vit", "config": own["vit"]}
            encoder = BACKBONES[own["backbone"]](**own["config"])
            classifier = Classifier(encoder, len(state["head.bias"]), pool=own["pool"])
            classifier.load_state_dict(state)
            return classifier.eval()

    @cached_property
    def label_space(self) -> LabelSpace:
        """The label space of the records; one of the user's own as far as the decision rules hold it."""
        spec = self.rules.spec
        if (name := spec["label_space"]) in available_label_spaces():
            return load_label_space(name)
        fields = []
        for rule in spec["fields"]:
            above = [one for one in rule["ancestors"] if one in self.fields]  # a run may leave fields out
            fields.append({"name": rule["field"]} | ({"parent": above[0]} if above else {}))
        data = {"label_space_version": "1.0", "name": name, "description": name, "source": self.name, "fields": fields}
        if (nothing := spec["no_finding"]) in self.fields:
            beside = [one for one in spec["no_finding_compatible"] if one in self.fields]
            data["no_finding"] = {"field": nothing, "compatible": beside}
        return parse_label_space(json.dumps(data), where=str(self.folder))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Images (B, C, H, W), preprocessed → probabilities (B, F), and distances (B,) from the training images."""
        logits = self._network(images)[0] if self.runtime == "onnx" else self._network(images).numpy()
        return expit(logits.astype(np.float64)), self.ood.distance(thumbnail_features(images).numpy())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, AttributeError, StopIteration, pickle.UnpicklingError, RuntimeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise VividError(f"{self.folder}: is not a bundle of `vivid bundle`: {what}") from error

    def _content(self, name: str) -> bytes:
        """The file of this name, if it is the one that the metadata were written with."""
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise VividError(f"{path}: this file of the bundle cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(content).hexdigest() != self.metadata["vivid"]["sha256"][name]:
            raise VividError(
                f"{path}: is not the file that configs/metadata.json was written with, but damaged or trained further: "
                "build the bundle again, or run configs/inference.json, which takes any weights"
            )
        return content


_VERSION_1 = {  # name of a tensor in a bundle of version 1, a sequence of PyTorch's and MONAI's modules → ours
    r"3\.patch_embeddings\.": "encoder.patch_embedding.patch_embeddings.",
    r"3\.position_embeddings": "encoder.patch_embedding.position_embeddings",
    r"4\.layers\.(\d+)\.self_attn\.in_proj_": r"encoder.blocks.\1.attn.qkv.",
    r"4\.layers\.(\d+)\.self_attn\.": r"encoder.blocks.\1.attn.",
    r"4\.layers\.(\d+)\.linear": r"encoder.blocks.\1.mlp.linear",
    r"4\.layers\.": "encoder.blocks.",
    r"4\.norm\.": "encoder.norm.",
    r"\d+\.(weight|bias)$": r"head.\1",
}


def _from_version_1(state: Mapping[str, Tensor], vit: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a bundle of version 1 under our names. Its CLS token was a patch of zeros with a position."""
    ours = {}
    for name, tensor in state.items():
        pattern, word = next(one for one in _VERSION_1.items() if re.match(one[0], name))
        ours[re.sub(pattern, word, name)] = tensor
    patches = "encoder.patch_embedding.patch_embeddings"
    side, positions = vit["patch_size"], ours["encoder.patch_embedding.position_embeddings"]
    ours[f"{patches}.weight"] = ours[f"{patches}.weight"].reshape(-1, vit["in_channels"], side, side)
    ours["encoder.cls_token"] = positions[:, :1] + ours[f"{patches}.bias"]
    ours["encoder.patch_embedding.position_embeddings"] = positions[:, 1:]
    return ours


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
