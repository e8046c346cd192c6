"""The ONNX file of a bundle, with what 8 bits change on the validation images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.deploy.calibrated import CalibratedModel
from vivid_monai.deploy.export import export_onnx
from vivid_monai.deploy.onnx import OnnxClassifier
from vivid_monai.deploy.postprocessing import DecisionRules
from vivid_monai.deploy.quantize import quantize_onnx
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.metrics.masked import masked_auroc
from vivid_monai.storage.skipped import Skipped

KINDS = ("float32", "int8")
MOST = 0.002
"""The AUROC of no answered finding may change by more."""


@dataclass(frozen=True)
class Change:
    """What 8 bits change on the validation images.

    Attributes:
        images: how many there are.
        auroc: answered field → its AUROC less that in float32.
        probability: largest change of a probability of an answered field.
        states: how many states are others, of images x answered fields.
    """

    images: int
    auroc: Mapping[str, float]
    probability: float
    states: int


def write_onnx(model: CalibratedModel, path: Path, *, kind: str, rules: DecisionRules) -> Change | None:
    """Write the classifier as ONNX.

    Args:
        kind: "float32", equal to PyTorch to 1e-4 (checked before the file takes its place), or "int8".

    Returns:
        None for float32, which changes nothing.

    Raises:
        VividError: another kind, packages that are missing, or 8 bits that change the AUROC of an answered finding by
            more than :data:`MOST` on the validation images; nothing is written.
    """
    if kind not in KINDS:
        raise VividError(f"onnx={kind!r} must be one of {', '.join(KINDS)}")
    options: dict[str, Any] = {"preprocess": model.preprocess, "fields": model.fields}
    if kind == "float32":
        export_onnx(model.classifier, path, **options)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".onnx.") as folder:
        whole, small = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        export_onnx(model.classifier, whole, **options)
        quantize_onnx(whole, small, training_images(model))
        change = measure_change(model, OnnxClassifier(small), rules)
        worst = max(change.auroc, key=lambda field: abs(change.auroc[field]), default=None)
        if worst is not None and abs(change.auroc[worst]) > MOST:
            raise VividError(
                f"8 bits change the AUROC of {worst} by {change.auroc[worst]:+.4f} on the {change.images} validation "
                f"images, {MOST} is allowed; take float32"
            )
        small.replace(path)
    return change


def training_images(model: CalibratedModel, n: int = 128) -> Iterator[NDArray[np.float32]]:
    """Every k-th training image (C, H, W), preprocessed, n of them; what cannot be read is left out."""
    items = model.manifest.select("train").items()
    rows = np.unique(np.linspace(0, len(items) - 1, n).astype(int))
    dataset = ImageDataset([items[row] for row in rows], model.preprocess)
    for one in (dataset[i] for i in range(len(dataset))):
        if not isinstance(one, Skipped):
            yield one["image"].numpy()


def measure_change(model: CalibratedModel, network: OnnxClassifier, rules: DecisionRules) -> Change:
    """Compare the predictions of the ONNX file for the validation images with those of float32."""
    before = model.validation
    store = FeatureStore(None)
    after = store.features(_OnnxEncoder(network), model.manifest, "val", model.fields, title="val in 8 bits")
    scores = [model.probabilities(part) for part in (before, after)]
    aurocs = [masked_auroc(one, before.states)[model.answered] for one in scores]
    states = [[list(rules.states(row).values()) for row in one] for one in scores]
    return Change(
        images=len(before.ids),
        auroc={model.fields[i]: float(b - a) for i, a, b in zip(model.answered, *aurocs, strict=True)},
        probability=float(np.abs(scores[1] - scores[0])[:, model.answered].max(initial=0)),
        states=int((np.array(states[0], object) != np.array(states[1], object)).sum()),
    )


class _Pooled(nn.Module):
    def __init__(self, network: OnnxClassifier) -> None:
        super().__init__()
        self.run = network

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.run(images)[1])


class _OnnxEncoder(Encoder):
    """The pooled features of an ONNX file."""

    kind, architecture = "onnxruntime", "vit"

    def __init__(self, network: OnnxClassifier) -> None:
        super().__init__(_Pooled(network), network.preprocess, pool="pooled", source=str(network.path), settings={})

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)
