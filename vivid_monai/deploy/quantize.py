"""ONNX in 8 bits: a quarter of the size, about twice as fast on processors that multiply bytes (VNNI).

ONNX Runtime's own ``quantize_dynamic`` has one scale per batch, so that an image's scores hang on its neighbours, and
rounds to nearest. With a scale per token and error-cancelling rounding no AUROC changed by more than .0009 on 217 to
2,619 test images (docs/deploy.md), where a bundle is refused from .002 on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import ArrayLike, NDArray
from onnx.helper import make_node
from torch import Tensor

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.deploy.calibration import CalibratedModel
from vivid_monai.deploy.export import export_onnx, write_metadata
from vivid_monai.deploy.onnx import INPUT, OnnxClassifier
from vivid_monai.deploy.postprocessing import DecisionRules
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.logs import progress
from vivid_monai.metrics.masked import masked_auroc
from vivid_monai.storage.files import part_folder, whole_file
from vivid_monai.storage.skipped import Skipped

MOST = 0.002
"""The AUROC of no answered finding may change by more."""
_TRAINING = 128  # images to round for
_GELU_MIN = -0.17  # no value of GELU is below
_CONSTANTS: dict[str, Any] = {
    "8bit.0": np.array(0),
    "8bit.1": np.array(1),
    "8bit.0s": np.array([0]),
    "8bit.1s": np.array([1]),
    "8bit.pad": np.array([0, 0, 0, 1]),
    "8bit.axis": np.array([-1]),
    "8bit.scale": np.float32(1 / 127),
    "8bit.zero": np.uint8(128),
    "8bit.gelu.min": np.float32(_GELU_MIN),
    "8bit.gelu.scale": np.float32(1 / 255),
    "8bit.gelu.zero": np.uint8(0),
}
_DAMPING = 0.01  # of the mean of the diagonal, as in GPTQ
_BLOCK = 64
_APART = 7  # of so many patch tokens one is looked at
_BATCH = 8
_SUM = 128  # of two neighbours: 255 · 128 is the last product of inputs up to 255 that fits into 16 bits


def write_int8(model: CalibratedModel, path: Path, rules: DecisionRules) -> dict[str, Any]:
    """Write the classifier as ONNX in 8 bits; a VividError, and no file, where an AUROC changes by over :data:`MOST`.

    Returns:
        What 8 bits change on the validation images: "images" (how many), "auroc" (answered field → its AUROC less that
        in float32), "probability" (the largest change of an answered field's) and "states" (how many are others, of
        images x answered fields).
    """
    with part_folder(path) as folder:
        whole, small = folder / "float32.onnx", folder / "int8.onnx"
        export_onnx(model.classifier, whole, preprocess=model.preprocess, fields=model.fields)
        items = model.manifest.select("train").items()
        some = [items[row] for row in np.unique(np.linspace(0, len(items) - 1, _TRAINING).astype(int))]
        quantize_onnx(whole, small, _images(some, model.preprocess))
        change = _change(model, OnnxClassifier(small), rules)
        worst = max(change["auroc"], key=lambda field: abs(change["auroc"][field]), default=None)
        if worst is not None and abs(change["auroc"][worst]) > MOST:
            raise VividError(
                f"8 bits change the AUROC of {worst} by {change['auroc'][worst]:+.4f} on the {change['images']} "
                f"validation images, {MOST} is allowed; take float32"
            )
        small.replace(path)
    return change


def _images(data: Sequence[dict[str, Any]], preprocess: Preprocess) -> Iterator[NDArray[np.float32]]:
    """Images (C, H, W) of these rows, preprocessed; what cannot be read is left out."""
    dataset = ImageDataset(data, preprocess)
    for one in (dataset[i] for i in range(len(dataset))):
        if not isinstance(one, Skipped):
            yield one["image"].numpy()


def _change(model: CalibratedModel, network: OnnxClassifier, rules: DecisionRules) -> dict[str, Any]:
    items, truth = model.manifest.select("val").items(), model.validation.states
    images = progress(_images(items, model.preprocess), "val in 8 bits", len(items), unit="image", leave=False)
    after = np.concatenate([network(batch)[1] for batch in _batches(images)])
    scores = [model.probabilities(features) for features in (model.validation.x, after)]
    aurocs = [masked_auroc(one, truth)[model.answered] for one in scores]
    states = [np.array([list(rules.states(row).values()) for row in one], object) for one in scores]
    return {
        "images": len(truth),
        "auroc": {model.fields[i]: float(b - a) for i, a, b in zip(model.answered, *aurocs, strict=True)},
        "probability": float(np.abs(scores[1] - scores[0])[:, model.answered].max(initial=0)),
        "states": int((states[0] != states[1]).sum()),
    }


def _batches(images: Iterable[ArrayLike]) -> Iterator[NDArray[np.float32]]:
    left = iter(images)
    while some := list(islice(left, _BATCH)):
        yield np.stack([np.asarray(one) for one in some])


def quantize_onnx(path: str | PathLike, out: str | PathLike, images: Iterable[ArrayLike]) -> Path:
    """Write an exported classifier anew with weights and inputs of its linear layers in 8 bits.

    Inputs have a scale per token, its own largest value (as the token-wise quantisation of ZeroQuant, Yao et al. 2022,
    arXiv:2206.01861): one outlier makes no other token coarse, and an image's scores do not depend on the others in its
    batch. What rounding leaves of the first token, CLS, goes through the layer as a row of its own and is added: images
    differ in it by little, and the head reads nothing else. Weights have a scale per output channel and are rounded so
    that errors cancel on `images` (:func:`round_weight`). Attention, LayerNorm, the patch embedding and the head stay
    in float32. All operators are standard ONNX.

    Args:
        path: a file of ``export_onnx``; any other, and one that cannot be written, raises a VividError.
        images: float32 (C, H, W) each, preprocessed: some hundred of those the classifier was trained on.
    """
    classifier, out = OnnxClassifier(path), Path(out)
    model = onnx.load(path)
    _quantize(model, input_moments(model, images))
    write_metadata(model, classifier.metadata | {"bits": 8})
    with whole_file(out) as part:
        part.write_bytes(model.SerializeToString())
        OnnxClassifier(part)(np.zeros((1, *classifier.image_shape), np.float32))
    return out


def _linear(graph: onnx.GraphProto) -> dict[str, NDArray[np.float32]]:
    """Name of each product with a stored weight → that weight (inputs, outputs)."""
    stored = {one.name: one for one in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in stored]
    return {node.name: onnx.numpy_helper.to_array(stored[node.input[1]]) for node in products}


def _quantize(model: onnx.ModelProto, moments: Mapping[str, NDArray]) -> None:
    """Replace products with weights by products of bytes; `moments` are those of their inputs, by name."""
    graph, linear = model.graph, _linear(model.graph)
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    nodes, constants = _first_rows(graph.input[0].name) if linear else [], dict(_CONSTANTS)
    for node in progress(graph.node, desc="8 bits", unit="node", leave=False):
        if node.name not in linear:
            nodes.append(node)
            continue
        tokens, weight = node.input
        values, scales = round_weight(linear[node.name], moments[tokens])
        constants |= {f"{weight}.int8": values, f"{weight}.scale": scales}
        after_gelu = made_by.get(tokens) == "Gelu"
        shift = _GELU_MIN * (values * scales.astype(np.float64)).sum(0)
        constants[f"{node.output[0]}.shift"] = shift.astype(np.float32)
        nodes += _product_of_bytes(node, after_gelu=after_gelu)
    used = {name for node in nodes for name in node.input}
    initializers = [one for one in graph.initializer if one.name in used]
    initializers += [onnx.numpy_helper.from_array(np.asarray(one), k) for k, one in constants.items() if k in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def _first_rows(image: str) -> list[Any]:
    """Where the first token of every image of the batch is: int64 (B, 2), its image and 0."""
    return [
        make_node("Shape", [image], ["8bit.batch"], name="8bit.Shape", start=0, end=1),
        make_node("Squeeze", ["8bit.batch"], ["8bit.images"], name="8bit.Squeeze"),
        make_node("Range", ["8bit.0", "8bit.images", "8bit.1"], ["8bit.numbers"], name="8bit.Range"),
        make_node("Unsqueeze", ["8bit.numbers", "8bit.axis"], ["8bit.column"], name="8bit.Unsqueeze"),
        make_node("Pad", ["8bit.column", "8bit.pad"], ["8bit.rows"], name="8bit.Pad"),
    ]


def _product_of_bytes(node: Any, *, after_gelu: bool) -> list[Any]:
    """The nodes that take the place of a product: y = top · dequantise(quantise(x / top)) · dequantise(w).

    Top is the largest value of every token. It is divided by first, so that one constant scale serves all tokens: the
    form in which runtimes find products of bytes. After GELU, values are shifted to begin at 0, which spares the sign.
    What is left of the first token is quantised and multiplied in the same way, and added to its row.
    """
    steps: list[Any] = []
    tokens, weight, output = node.input[0], node.input[1], node.output[0]

    def add(operator: str, *inputs: str, to: str = "", **attributes: int | str) -> str:
        name = to or f"{output}.{operator}{len(steps)}"
        steps.append(make_node(operator, inputs, [name], name=f"{node.name}.{operator}{len(steps)}", **attributes))
        return name

    def in_bytes(x: str, size: str, *form: str) -> tuple[str, str, str, str]:
        """x over its top, the same in bytes, top, and the product of the bytes; each product has a weight of its own to
        dequantise, as runtimes look for the two in pairs."""
        top = add("ReduceMax", size, "8bit.axis")  # of a token of zeros 0: 0 / 0 becomes some byte, which times 0 is 0
        unit = add("Div", x, top)
        quantised = add("QuantizeLinear", unit, *form)
        right = add("DequantizeLinear", f"{weight}.int8", f"{weight}.scale", axis=1)
        return unit, quantised, top, add("MatMul", add("DequantizeLinear", quantised, *form), right)

    signed, first = ("8bit.scale", "8bit.zero"), ("8bit.0s", "8bit.1s", "8bit.1s")
    if after_gelu:
        form = ("8bit.gelu.scale", "8bit.gelu.zero")
        tokens = size = add("Sub", tokens, "8bit.gelu.min")
    else:
        form, size = signed, add("Abs", tokens)
    unit, quantised, top, product = in_bytes(tokens, size, *form)
    scaled = add("Mul", product, top)
    if after_gelu:
        scaled = add("Add", scaled, f"{output}.shift")

    rest = add("Sub", add("Slice", unit, *first), add("DequantizeLinear", add("Slice", quantised, *first), *form))
    _, _, rest_top, rest_product = in_bytes(rest, add("Abs", rest), *signed)
    row = add("Mul", rest_product, add("Mul", rest_top, add("Slice", top, *first)))
    add("ScatterND", scaled, "8bit.rows", add("Squeeze", row, "8bit.1s"), to=output, reduction="add")
    return steps


def round_weight(
    weight: NDArray[np.float32], moments: NDArray[np.floating]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight as int8 (inputs, outputs), and the float32 scale of each output.

    One input after the other is rounded, and what that does to the outputs is made good by the inputs that are still to
    come, as far as they go together (GPTQ: Frantar et al. 2023, arXiv:2210.17323).

    Processors without VNNI add the products of two neighbours in 16 bits and cut off what does not fit, the
    "saturation issue" of the manuals of ONNX Runtime and OpenVINO; in most layers it would add errors of 2 to 5 %. With
    inputs up to 255, all fits where two neighbours add up to at most 128; scales and rounding see to that.

    Args:
        weight: (inputs, outputs), an even number of inputs.
        moments: (inputs, inputs), Σ x xᵀ of inputs x, up to a factor.
    """
    exact = torch.tensor(weight, dtype=torch.float64)
    pairs = exact.reshape(-1, 2, weight.shape[1])
    top = torch.maximum(pairs.clamp(min=0).sum(1), -pairs.clamp(max=0).sum(1)).amax(0)
    scales = (torch.where(top > 0, top, 1) / 127).float()
    gram = torch.tensor(moments, dtype=torch.float64)
    order = gram.diag().argsort(descending=True, stable=True)
    upper = _factor(gram[order][:, order])
    left = exact[order] / scales  # the largest inputs first, while all others can make good
    rounded = torch.zeros_like(left)
    for start in range(0, len(order), _BLOCK):
        end = min(start + _BLOCK, len(order))
        errors = torch.empty(end - start, weight.shape[1], dtype=torch.float64)
        for i in range(start, end):
            neighbour = rounded[order[i] ^ 1]
            low, high = -_SUM - neighbour.clamp(max=0), _SUM - neighbour.clamp(min=0)
            rounded[order[i]] = left[i].round().clamp(-127, 127).clamp(low, high)
            errors[i - start] = (left[i] - rounded[order[i]]) / upper[i, i]
            left[i + 1 : end].addr_(upper[i, i + 1 : end], errors[i - start], alpha=-1)
        left[end:] -= upper[start:end, end:].T @ errors
    return rounded.to(torch.int8).numpy(), scales.numpy()


def _factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse: row i says what input i can pass on to those after it."""
    diagonal = moments.diagonal()
    diagonal += _DAMPING * diagonal.mean() or 1
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)


def input_moments(model: onnx.ModelProto, images: Iterable[ArrayLike]) -> dict[str, NDArray[np.float32]]:
    """The inputs of products with weights, by name → their second moments (D, D) on some images.

    The first token counts as much as all others together: the head reads it. Images are float32 (C, H, W) each.
    """
    linear = _linear(model.graph)
    tokens = sorted({node.input[0] for node in model.graph.node if node.name in linear})
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tokens)
    session = onnxruntime.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    moments: dict[str, Any] = {}
    for batch in _batches(images):
        for name, values in zip(tokens, session.run(tokens, {INPUT: batch}), strict=True):
            first, others = values[:, 0], values[:, 1::_APART].reshape(-1, values.shape[-1])
            added = first.T @ first + others.T @ others * (len(first) / len(others))
            moments[name] = moments.get(name, 0) + added
    if not moments:
        raise VividError("8 bits need images to round for, some hundred of those the classifier was trained on")
    return moments
