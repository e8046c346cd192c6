"""Export a classifier as TorchScript or ONNX, with its preprocessing and fields, checked against PyTorch."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import onnx
import torch
from monai.data.torchscript_utils import load_net_with_metadata, save_net_with_metadata
from torch import Tensor, nn

from vivid_monai.deploy.onnx import FORMAT, INPUT, OUTPUTS, OnnxClassifier
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.logs import quiet
from vivid_monai.networks.classifier import Classifier
from vivid_monai.storage.files import whole_file

TOLERANCE = 1e-4
BATCHES = (1, 2, 5)
OPSET = 20
"""Of ONNX: the first with Gelu as one operator, which runtimes compute in one pass; under it all is a tenth slower."""


def describe(classifier: Classifier, preprocess: Preprocess, fields: Sequence[str]) -> dict[str, Any]:
    """Format, preprocessing, fields and versions of an exported classifier; JSON-serialisable.

    Raises:
        VividError: they do not belong to this classifier.
    """
    logits, shape = classifier.head.out_features, classifier.encoder.image_shape
    if len(fields) != logits or len(set(fields)) != len(fields):
        raise VividError(f"{len(fields)} fields ({len(set(fields))} different ones) for a classifier of {logits}")
    if shape != preprocess.shape:
        raise VividError(
            f"the preprocessing makes images {preprocess.shape}, the classifier is for {shape}: they do not belong"
        )
    return {
        "format": FORMAT,
        "preprocess": preprocess.to_dict(),
        "fields": list(fields),
        "versions": {name: version(name) for name in ("vivid-monai", "torch", "monai")},
    }


def for_export(classifier: Classifier) -> Classifier:
    """A copy in evaluation mode, in float32, on the CPU, without gradients; the original stays as it is."""
    return deepcopy(classifier).float().cpu().eval().requires_grad_(False)


def check_same(
    path: str | PathLike,
    classifier: Classifier,
    exported: Callable[[Tensor], tuple[Tensor, ...]],
    expected: Callable[[Tensor], tuple[Tensor, ...]],
) -> None:
    """Compare an exported file with PyTorch on random images, in batches of 1, 2 and 5.

    MONAI's ``convert_to_onnx(verify=True)`` compares one batch, of the size that was exported, by an absolute
    tolerance.

    Args:
        path: of the file, for the message.
        exported, expected: images (B, C, H, W) → tensors that must be equal one by one.

    Raises:
        VividError: a shape that differs, or a number, by over :data:`TOLERANCE`, as a part of the largest expected one
            where that is over 1: the logits of noise may be in the dozens.
    """
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        images = torch.randn(batch, *classifier.encoder.image_shape, generator=generator)
        with torch.inference_mode():
            pairs = list(zip(exported(images), expected(images), strict=True))
        for got, wanted in pairs:
            difference = torch.inf
            if got.shape == wanted.shape:
                difference = ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()
            if not difference <= TOLERANCE:
                raise VividError(
                    f"{path}: a batch of {batch} differs from PyTorch's by {difference:.3g}, allowed is {TOLERANCE:g}; "
                    "nothing was written"
                )


def export_torchscript(
    classifier: Classifier, path: str | PathLike, *, preprocess: Preprocess, fields: Sequence[str]
) -> Path:
    """Write a classifier as TorchScript: images float32 (B, C, H, W), any B → logits (B, F).

    ``torch.jit.load`` reads it; MONAI's ``load_net_with_metadata`` gives its preprocessing, fields and versions too.
    The file is read back and compared with PyTorch before it takes its place.

    Raises:
        VividError: preprocessing or fields of another classifier, a file that cannot be written, logits that differ by
            over 1e-4.
    """
    path, metadata = Path(path), describe(classifier, preprocess, fields)
    network = for_export(classifier)
    with whole_file(path) as part:
        save_net_with_metadata(torch.jit.script(network), str(part), include_config_vals=False, meta_values=metadata)
        loaded, _, _ = load_net_with_metadata(str(part))
        check_same(path, network, lambda images: (loaded(images),), lambda images: (network(images),))
    return path


def export_onnx(classifier: Classifier, path: str | PathLike, *, preprocess: Preprocess, fields: Sequence[str]) -> Path:
    """Write a classifier as ONNX, for any runtime.

    Input "image" float32 (batch, C, H, W), any batch; outputs "pred", logits (batch, F), and "features", pooled
    features (batch, D). Preprocessing, fields and versions are JSON in the file's metadata. The file is read back as
    an :class:`~vivid_monai.deploy.onnx.OnnxClassifier` and compared with PyTorch before it takes its place.

    Raises:
        VividError: preprocessing or fields of another classifier; a file that cannot be written; outputs that differ
            by over 1e-4.
    """
    path, metadata = Path(path), describe(classifier, preprocess, fields)
    network = _WithFeatures(for_export(classifier))
    model = _onnx_model(network)
    write_metadata(model, metadata)
    with whole_file(path) as part:
        part.write_bytes(model.SerializeToString())
        runtime = OnnxClassifier(part, threads=torch.get_num_threads())
        check_same(path, network.classifier, lambda images: tuple(map(torch.from_numpy, runtime(images))), network)
    return path


def write_metadata(model: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Set the metadata of an ONNX model, each value as JSON; other metadata, of nodes too, are removed.

    The exporter notes for every node which lines of which files it comes from: paths of the machine that exported.
    """
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    # "location" is what names another file as the place of weights; files with this word are refused.
    texts = {name: json.dumps(value).replace("location", r"\u006cocation") for name, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)


class _WithFeatures(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.features(image)
        return self.classifier.head(features), features


def _onnx_model(network: _WithFeatures) -> onnx.ModelProto:
    with quiet():  # the exporter reports its progress and which other packages it misses
        program: Any = torch.onnx.export(
            network,
            (torch.zeros(2, *network.classifier.encoder.image_shape),),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
    return program.model_proto
