"""ONNX in 8 bits: a quarter of the size, more than twice as fast on processors that multiply bytes (VNNI)."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vivid_monai.deploy.formats.onnx import write_metadata
from vivid_monai.deploy.formats.onnx_classifier import INPUT, OnnxClassifier, need
from vivid_monai.errors import VividError
from vivid_monai.files import whole_file
from vivid_monai.metrics.masked import masked_auroc


def quantize_onnx(
    path: str | PathLike, out: str | PathLike, *, images: Iterable[ArrayLike], keep: Sequence[str] = ()
) -> Path:
    """Write an exported classifier anew with weights and inputs of its linear layers in 8 bits.

    Weights are signed with a scale per output channel, inputs unsigned with one range per layer, taken from `images`
    (Jacob et al. 2018, arXiv:1712.05877). Ranges taken anew from every batch ("dynamic" quantisation) would need no
    images, but make an image's scores depend on the others in its batch. Attention, LayerNorm, the patch embedding and
    the head stay in float32: together they are under a tenth of the time.

    Args:
        path: a file of ``export_onnx``.
        out: the file to write.
        images: float32 (C, H, W), preprocessed; some hundred of the training images, each of another patient.
        keep: layers to leave in float32: parts of names such as "mlp.linear2" or "blocks.0.", for a classifier whose
            accuracy :func:`auroc_differences` finds changed.

    Raises:
        VividError: the packages of ``vivid-monai[onnx]`` are not installed; not a file of ``export_onnx``; no image or
            one of another shape; a name in `keep` that no layer has; a file that cannot be written.
    """
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    classifier, out = OnnxClassifier(path), Path(out)
    if "calibration_images" in classifier.metadata:
        raise VividError(f"{path}: is in 8 bits already; give the file that export_onnx wrote")
    model = onnx.load(path)
    # The exporter has folded constants and inferred shapes, which the quantiser would remind of.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    layers = _linear_layers(model)
    for name in keep:
        if not any(name in layer for layer in layers.values()):
            raise VividError(f"keep={name!r}: no layer has this in its name; they are {', '.join(layers.values())}")
    chosen = [node for node, layer in layers.items() if not any(name in layer for name in keep)]
    reader = _reader(quantization, classifier, images)
    with whole_file(out) as part, TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        # The quantiser writes files of its own making and knows not of ours.
        raw = Path(folder) / "raw.onnx"
        quantization.quantize_static(
            model,
            raw,
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},  # their sums go on in float32
        )
        quantized = onnx.load(raw)
        write_metadata(quantized, classifier.metadata | {"calibration_images": reader.count, "kept": list(keep)})
        part.write_bytes(quantized.SerializeToString())
        OnnxClassifier(part)(np.zeros((1, *classifier.image_shape), np.float32))
    return out


def auroc_differences(
    reference: str | PathLike, other: str | PathLike, images: Iterable[ArrayLike], states: ArrayLike
) -> NDArray[np.float64]:
    """AUROC of `other` less that of `reference`, field by field, on the same images.

    Args:
        reference, other: two files of ``export_onnx`` or ``quantize_onnx``, of the same fields.
        images: N images float32 (C, H, W), preprocessed.
        states: (N, F), codes of :mod:`vivid_monai.ums.states`; only present and absent count.

    Returns:
        (F,); NaN where a field has no present or no absent image.

    Raises:
        VividError: files of other fields, other numbers of images and states.
    """
    first, second = OnnxClassifier(reference), OnnxClassifier(other)
    if first.fields != second.fields:
        raise VividError(f"{first.path} and {second.path} answer different fields: {first.fields}, {second.fields}")
    pairs = [[classifier(np.asarray(image)[None])[0][0] for classifier in (first, second)] for image in images]
    scores = np.array(pairs, np.float64).reshape(len(pairs), 2, len(first.fields))
    return masked_auroc(scores[:, 1], states) - masked_auroc(scores[:, 0], states)


def _linear_layers(model: Any) -> dict[str, str]:
    """Node → name of the layer, of every product with weights."""
    weights = {one.name for one in model.graph.initializer}
    products = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    return {name: name.split("/")[0].removeprefix("classifier.encoder.") for name in products}


def _reader(quantization: Any, classifier: OnnxClassifier, images: Iterable[ArrayLike]) -> Any:
    """The images as the quantiser wants to have them."""

    class Reader(quantization.CalibrationDataReader):
        count = 0

        def __init__(self) -> None:
            stream = iter(images)
            first = next(stream, None)
            if first is None:
                raise VividError("no image was given to take the ranges from; some hundred training images are needed")
            self.stream: Iterator[ArrayLike] = itertools.chain([first], stream)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self.stream, None)
            if image is None:
                return None
            batch = np.asarray(image)[None]
            classifier.check(batch)
            self.count += 1
            return {INPUT: batch}

    return Reader()
