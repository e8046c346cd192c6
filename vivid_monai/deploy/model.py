"""The classifier of a bundle, loaded from its folder: pixels in, calibrated probabilities out."""

import hashlib
import io
import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

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

Network = Callable[[Tensor], NDArray[np.float32]]
"""Images (B, C, H, W), preprocessed → logits (B, F)."""


@dataclass(frozen=True)
class BundleModel:
    """What a bundle predicts with. No config of the bundle is evaluated and no code of it is run.

    Attributes:
        folder: of the bundle.
        runtime: what runs it, a key of :data:`RUNTIMES`.
        network: the classifier in that runtime.
        rules: from probabilities to states.
        ood: detects images that are not to be assessed.
        metadata: of configs/metadata.json.
    """

    folder: Path
    runtime: str
    network: Network
    preprocess: Preprocess
    rules: DecisionRules
    ood: OODDetector
    metadata: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path, *, runtime: str | None = None) -> Self:
        """Read configs/metadata.json and the files in models/ that it names and the runtime needs.

        Args:
            runtime: "onnx" (ONNX Runtime), "torch" (PyTorch) or None: ONNX Runtime, where the bundle was built for it.

        Raises:
            VividError: not a bundle of ours, files that are missing, damaged, or not those of its metadata; a bundle
                without a file for the runtime.
        """
        metadata = _metadata(folder)
        with _explained(folder):
            own = metadata["vivid"]
            runtime = runtime or next(name for name, file in _FILES.items() if file in own["sha256"])
            if _FILES[runtime] not in own["sha256"]:
                raise VividError(f"{folder}: was built without {_FILES[runtime]}; build it with --onnx float32 or int8")
            _content(folder, OOD, own)
            return cls(
                folder=folder,
                runtime=runtime,
                network=_onnx(folder, own) if runtime == "onnx" else _Eager(_classifier(folder, own)),
                preprocess=Preprocess.from_dict(own["preprocess"]),
                rules=DecisionRules(metadata["answers"]),
                ood=OODDetector.load(folder / OOD),
                metadata=metadata | {"version": str(metadata["version"]), "vivid": own | {"views": list(own["views"])}},
            )

    @property
    def name(self) -> str:
        """Of the bundle's folder."""
        return self.folder.resolve().name

    @property
    def version(self) -> str:
        """Of the bundle."""
        return str(self.metadata["version"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file that answers."""
        return str(self.metadata["vivid"]["sha256"][_FILES[self.runtime]])

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the findings, in the order of the probabilities."""
        return tuple(self.rules.fields)

    @property
    def trained_on(self) -> dict[str, list[str]]:
        """The words of the training images' columns "modality", "anatomy" and "view"; no view: not known."""
        own, spec = self.metadata["vivid"], self.rules.spec
        return {
            "modality": own.get("modalities", [spec["modality"]]),  # of one value in bundles of before version 2
            "anatomy": own.get("anatomies", [spec["anatomy"]]),
            "view": own["views"],
        }

    @cached_property
    def label_space(self) -> LabelSpace:
        """The label space of the records; one of the user's own as far as the decision rules hold it."""
        if (name := self.rules.spec["label_space"]) in available_label_spaces():
            return load_label_space(name)
        fields = []
        for rule in self.rules.spec["fields"]:
            above = [one for one in rule["ancestors"] if one in self.fields]  # a run may leave fields out
            fields.append({"name": rule["field"]} | ({"parent": above[0]} if above else {}))
        data = {"label_space_version": "1.0", "name": name, "description": name, "source": self.name, "fields": fields}
        if (nothing := self.rules.spec["no_finding"]) in self.fields:
            beside = [one for one in self.rules.spec["no_finding_compatible"] if one in self.fields]
            data["no_finding"] = {"field": nothing, "compatible": beside}
        return parse_label_space(json.dumps(data), where=str(self.folder))

    @cached_property
    def classifier(self) -> Classifier:
        """The classifier in PyTorch, whatever the runtime.

        Raises:
            VividError: as :meth:`load`.
        """
        if isinstance(self.network, _Eager):
            return self.network.classifier
        with _explained(self.folder):
            return _classifier(self.folder, self.metadata["vivid"])

    def __call__(self, images: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Images (B, C, H, W), preprocessed → probabilities (B, F), and distances (B,) from the training images."""
        logits = self.network(images)
        return expit(logits.astype(np.float64)), self.ood.distance(thumbnail_features(images).numpy())


@dataclass(frozen=True)
class _Eager:
    classifier: Classifier

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        return self.classifier(images).numpy()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError, StopIteration, pickle.UnpicklingError, RuntimeError) as error:
        raise VividError(f"{folder}: is not a bundle of `vivid bundle`: {type(error).__name__}: {error}") from error


def _classifier(folder: Path, own: Mapping[str, Any]) -> Classifier:
    state = torch.load(io.BytesIO(_content(folder, WEIGHTS, own)), map_location="cpu", weights_only=True)
    if "vit" in own:  # a bundle of version 1
        state, own = _from_version_1(state, own["vit"]), {**own, "backbone": "vit", "config": own["vit"]}
    encoder = BACKBONES[own["backbone"]](**own["config"])
    classifier = Classifier(encoder, len(state["head.bias"]), pool=own["pool"])
    classifier.load_state_dict(state)
    return classifier.eval()


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


def _onnx(folder: Path, own: Mapping[str, Any]) -> Network:
    _content(folder, ONNX, own)
    classifier = OnnxClassifier(folder / ONNX)
    return lambda images: classifier(images)[0]


def _content(folder: Path, name: str, own: Mapping[str, Any]) -> bytes:
    path, digest = folder / name, own["sha256"][name]
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
