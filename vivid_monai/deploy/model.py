"""Trained models in Python: a bundle, the folder of a run or an encoder file; images in, probabilities out."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from vivid_monai.checks import refuse_pointers
from vivid_monai.deploy.eligibility import trained_on
from vivid_monai.deploy.onnx import OnnxClassifier
from vivid_monai.deploy.ood import OODDetector
from vivid_monai.deploy.ood_score import thumbnail_features
from vivid_monai.deploy.postprocessing import DecisionRules
from vivid_monai.errors import VividError, cut, one_line
from vivid_monai.evaluation.encoders import VividEncoder, load_encoder
from vivid_monai.evaluation.probes import LinearProbe, load_probe
from vivid_monai.images.preprocess import BasePreprocess, Preprocess
from vivid_monai.images.read import ImageError
from vivid_monai.networks.checkpoint import load_pickled
from vivid_monai.networks.classifier import BACKBONES, Classifier
from vivid_monai.networks.spd import SPD
from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space, parse_label_space
from vivid_monai.ums.verify import verify

WEIGHTS, ONNX, OOD = "models/model.pt", "models/model.onnx", "models/assessment.safetensors"
RUNTIMES = {"onnx": "ONNX Runtime", "torch": "PyTorch"}
"""What can run a bundle, and its name."""
_FILES = {"onnx": ONNX, "torch": WEIGHTS}
ENCODER = "pretrained_vit.safetensors"
SHIPPED = ("fine-tuned", "pretrained")
"""What the encoder that a run ships is called in its results."""


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
        """Read configs/metadata.json and the files that it names. Without a runtime: ONNX, where it was built for that.

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
            self.trained_on = trained_on(self.metadata)
            self._content(OOD)
            self.ood = OODDetector.load(folder / OOD)
            if self.runtime == "onnx":
                self._content(ONNX)
            self._network: Any = OnnxClassifier(folder / ONNX) if self.runtime == "onnx" else self.classifier
            self._try()

    @cached_property
    def classifier(self) -> Classifier:
        """The classifier in PyTorch, whatever the runtime."""
        own = self.metadata["vivid"]
        with self._explained():
            path, content = self.folder / WEIGHTS, self._content(WEIGHTS)
            state = load_pickled(path, way_out="build the bundle again", content=content)
            if "vit" in own:  # a bundle of version 1
                state, own = _from_version_1(state, own["vit"]), {**own, "backbone": "vit", "config": own["vit"]}
            encoder = BACKBONES[own["backbone"]](**own["config"])
            spd = SPD(**own["spd"]) if "spd" in own else None
            classifier = Classifier(encoder, len(state["head.bias"]), pool=own["pool"], spd=spd)
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
        return self.probabilities(images), self.ood.distance(thumbnail_features(images).numpy())

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> NDArray[np.float64]:
        """The probabilities (B, F) alone."""
        logits = self._network(images)[0] if self.runtime == "onnx" else self._network(images).numpy()
        return expit(logits.astype(np.float64))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except VividError as error:
            if str(error).startswith(str(self.folder)):
                raise
            raise VividError(f"{self.folder}: {one_line(error, 200)}") from error  # a value may be of any length
        except Exception as error:  # whatever a value leads to that is not the right one
            what = f"{type(error).__name__}: {one_line(error, 160)}"
            raise VividError(f"{self.folder}: is not a bundle of `vivid bundle`: {what}") from error

    def _try(self) -> None:
        """Answer a blank image, and the extremes: what does not fit together is told before the first real one."""
        probabilities, distances = self(torch.zeros(1, *self.preprocess.shape))
        for extreme in (0.0, 1.0):
            self.rules.states([extreme] * len(self.fields))
        record = self.rules.record("blank", probabilities[0])
        if wrong := verify(record, self.label_space):
            raise VividError(f"{self.folder}: its answers break the rules of records: {cut(wrong[0].message, 160)}")
        if not distances[0] >= 0 or not self.ood.limit >= 0:
            raise VividError(f"{self.folder}: its distance from the training images is no number")

    def _content(self, name: str) -> bytes:
        """The file of this name, if it is the one that the metadata were written with."""
        path = self.folder / name
        refuse_pointers([path])
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


class Model:
    """A frozen network with its preprocessing and, if it has a head, the names of its findings in order (`fields`)."""

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        preprocess: BasePreprocess,
        fields: tuple[str, ...] = (),
        score: Callable[[Tensor], list[float | None]] | None = None,
    ) -> None:
        """
        Args:
            encode: images (B, C, *spatial), preprocessed → features (B, D).
            score: features (1, D) → a probability for each of the fields, None for one that is not assessed.
        """
        self.fields, self.preprocess = fields, preprocess
        self._encode, self._score, self._prepare = encode, score, preprocess.transform()

    @torch.no_grad()
    def features(self, image: str | PathLike[str], *, slice: int | None = None) -> NDArray[np.float32]:
        """Pooled features (D,), float32, of an image file.

        Args:
            image: PNG, JPEG or DICOM; NIfTI or a series of DICOM where the preprocessing is of volumes.
            slice: of a NIfTI file, from 0 = most inferior, where the preprocessing is of slices.

        Raises:
            ImageError: the file cannot be used; a VividError.
        """
        item = {"image": str(image)} | ({} if slice is None else {"slice": slice})
        try:
            prepared = self._prepare(item)["image"]
        except RuntimeError as error:  # MONAI's, around what a transform raised
            if isinstance(error.__cause__, ImageError):
                raise error.__cause__ from None
            raise
        return self._encode(torch.as_tensor(prepared)[None]).float()[0].numpy()

    def __call__(self, image: str | PathLike[str], *, slice: int | None = None) -> dict[str, float | None]:
        """Probability of each finding in an image file, None where the model does not assess the finding.

        A bundle's probabilities are calibrated. Images unlike the training images are not refused, as ``vivid predict``
        does. Arguments are those of :meth:`features`; an encoder without a head raises a VividError.
        """
        if self._score is None:
            raise VividError("this encoder has no head; load the folder of its run or a bundle, or call features()")
        features = torch.from_numpy(self.features(image, slice=slice))[None]
        with torch.no_grad():
            return dict(zip(self.fields, self._score(features), strict=True))


def load_model(path: str | PathLike[str]) -> Model:
    """Load a bundle of ``vivid bundle``, the folder of a run of ``configs/train.json``, whose probabilities are its
    head's, or the file of an encoder; what is damaged or none of these raises a VividError.
    """
    path = Path(path)
    if (path / "configs" / "metadata.json").is_file():
        bundle = BundleModel(path, runtime="torch")
        rules, head = bundle.rules.spec["fields"], bundle.classifier.head

        def calibrated(features: Tensor) -> list[float | None]:
            probabilities = head(features)[0].double().sigmoid().tolist()
            return [None if rule["unanswered"] else p for rule, p in zip(rules, probabilities, strict=True)]

        return Model(bundle.classifier.features, bundle.preprocess, bundle.fields, calibrated)
    if (path / ENCODER).is_file():
        encoder, probe, fields = load_run(path)

        def probed(features: Tensor) -> list[float | None]:
            probabilities = probe.probabilities(features.numpy())[0].tolist()
            return [None if i in probe.untrained else p for i, p in enumerate(probabilities)]

        return Model(encoder, encoder.preprocess, fields, probed)
    if path.is_file():
        alone = load_encoder(str(path))
        return Model(alone, alone.preprocess)
    raise VividError(f"{path}: neither a bundle, nor the folder of a run with {ENCODER}, nor the file of an encoder")


def load_run(folder: Path) -> tuple[VividEncoder, LinearProbe, tuple[str, ...]]:
    """The encoder, the head as a probe and its fields of a finished run of ``configs/train.json``, fine-tuned or not.

    Raises:
        VividError: it is not the folder of one, or a file is damaged.
    """
    path = folder / "config.json"
    try:
        pool = json.loads(path.read_text(encoding="utf-8")).get("pool")
    except (OSError, ValueError) as error:
        raise VividError(f"{path}: cannot be read: {error}; give the folder of a finished training run") from error
    tuned, pretrained = (folder / "probes" / f"{name}-0.safetensors" for name in SHIPPED)
    head = tuned if tuned.is_file() else pretrained
    # The config of a fine-tuning says how its start encoder is pooled.
    encoder = load_encoder(str(folder / ENCODER), pool=None if head is tuned else pool)
    assert isinstance(encoder, VividEncoder)
    probe, fields = load_probe(head, encoder=encoder.fingerprint())
    assert isinstance(probe, LinearProbe), "of pooled features"
    return encoder, probe, fields
