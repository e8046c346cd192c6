"""ONNX: one file for every runtime, that says of itself what it needs and what it answers."""

import ast
import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivid_monai.deploy.formats.description import check_same, describe, for_export
from vivid_monai.deploy.formats.onnx_classifier import INPUT, OUTPUTS, OnnxClassifier, need
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import Classifier
from vivid_monai.storage.files import whole_file

OPSET = 20
"""The first with Gelu as one operator, which runtimes compute in one pass."""


def export_onnx(
    classifier: Classifier,
    path: str | PathLike,
    *,
    preprocess: Preprocess,
    fields: Sequence[str],
    opset: int = OPSET,
) -> Path:
    """Write a classifier as ONNX, for any runtime.

    Input "image" float32 (batch, C, H, W), any batch; outputs "pred", logits (batch, F), and "features", pooled
    features (batch, D). Preprocessing, fields and versions are JSON in the file's metadata. The file was read back as
    an :class:`~vivid_monai.deploy.formats.onnx_classifier.OnnxClassifier` and held against PyTorch before it took its
    place.

    Args:
        opset: version of ONNX's operators, 18 or above; under 20 it is a tenth slower.

    Raises:
        VividError: a package of ONNX cannot be imported; preprocessing or fields of another
            classifier; an opset that the exporter does not know; a file that cannot be written; answers that differ
            from PyTorch's by over 1e-4.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package)
    path, metadata = Path(path), describe(classifier, preprocess, fields)
    network = _WithFeatures(for_export(classifier))
    model = _model(network, opset)
    write_metadata(model, metadata)
    with whole_file(path) as part:
        part.write_bytes(model.SerializeToString())
        runtime = OnnxClassifier(part, threads=torch.get_num_threads())
        check_same(
            path,
            network.classifier,
            lambda images: tuple(torch.from_numpy(one) for one in runtime(images)),
            expected=network,
        )
    return path


def write_metadata(model: Any, metadata: dict[str, Any]) -> None:
    """Set the metadata of an ONNX model, each value as JSON; other metadata, of nodes too, are removed.

    The exporter notes for every node which lines of which files it comes from: paths of the machine that exported.
    """
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    # "location" is what names another file as the place of weights; files with this word are refused.
    texts = {name: json.dumps(value).replace("location", r"\u006cocation") for name, value in metadata.items()}
    need("onnx").helper.set_model_props(model, texts)


def _name_layers(model: Any) -> None:
    """Begin the name of every node with that of the layer it is part of, as the exporter's notes have it.

    Names of weights do not tell: equal ones, such as the zero biases of a new network, become one.
    """
    for node in model.graph.node:
        notes = {prop.key: prop.value for prop in node.metadata_props}
        if scopes := notes.get("pkg.torch.onnx.name_scopes"):
            node.name = f"{ast.literal_eval(scopes)[-2]}/{node.name}"


class _WithFeatures(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.features(image)
        return self.classifier.head(features), features


def _model(network: _WithFeatures, opset: int) -> Any:
    example = torch.zeros(2, *network.classifier.encoder.image_shape)
    try:
        with _quietly():
            program: Any = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise VividError(f"the classifier cannot be written as ONNX with opset {opset}: {error}") from error
    model = program.model_proto
    if [one.version for one in model.opset_import if not one.domain] != [opset]:  # what fails here is only logged
        raise VividError(f"the installed exporter does not know opset {opset}; leave it out for {OPSET}")
    _name_layers(model)
    return model


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter tells its progress and what other packages it misses."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
