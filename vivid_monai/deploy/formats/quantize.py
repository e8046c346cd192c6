"""ONNX in 8 bits: a quarter of the size, about twice as fast on processors that multiply bytes (VNNI)."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from vivid_monai.deploy.formats.onnx import write_metadata
from vivid_monai.deploy.formats.onnx_classifier import OnnxClassifier, need
from vivid_monai.deploy.formats.rounding import input_moments, round_weight
from vivid_monai.errors import VividError
from vivid_monai.metrics.masked import masked_auroc
from vivid_monai.storage.files import whole_file

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


def quantize_onnx(
    path: str | PathLike, out: str | PathLike, images: Iterable[ArrayLike], *, keep: Sequence[str] = ()
) -> Path:
    """Write an exported classifier anew with weights and inputs of its linear layers in 8 bits.

    Inputs have a scale per token, its own largest value (as the token-wise quantisation of ZeroQuant, Yao et al. 2022,
    arXiv:2206.01861): one outlier makes no other token coarse, and an image's scores do not depend on the others in its
    batch. What rounding leaves of the first token, CLS, goes through the layer as a row of its own and is added: images
    differ in it by little, and the head reads nothing else. Weights have a scale per output channel and are rounded so
    that errors cancel on `images` (:mod:`~vivid_monai.deploy.formats.rounding`). Attention, LayerNorm, the patch
    embedding and the head stay in float32. All operators are standard ONNX.

    Args:
        path: a file of ``export_onnx``; with its default opset, as the output of GELU is then told by its operator and
            takes all 256 steps.
        out: the file to write.
        images: float32 (C, H, W) each, preprocessed: some hundred of those the classifier was trained on.
        keep: layers to leave in float32: parts of names such as "mlp.linear2" or "blocks.0.", for a classifier whose
            accuracy :func:`auroc_differences` finds changed. The first block matters most.

    Raises:
        VividError: a package of ONNX cannot be imported; not a file of ``export_onnx``; no image, or one of another
            shape; a name in `keep` that no layer has; a file that cannot be written.
    """
    onnx = need("onnx")
    classifier, out = OnnxClassifier(path), Path(out)
    if "bits" in classifier.metadata:
        raise VividError(f"{path}: is in {classifier.metadata['bits']} bits already; give the file of export_onnx")
    model = onnx.load(path)
    layers = _linear_layers(model)
    for name in keep:
        if not any(name in layer for layer in layers.values()):
            raise VividError(f"keep={name!r}: no layer has this in its name; they are {', '.join(layers.values())}")
    chosen = {node for node, layer in layers.items() if not any(name in layer for name in keep)}
    _quantize(model, chosen, input_moments(classifier, model, chosen, images))
    write_metadata(model, classifier.metadata | {"bits": 8, "kept": list(keep)})
    with whole_file(out) as part:
        part.write_bytes(model.SerializeToString())
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


def _quantize(model: Any, chosen: set[str], moments: Mapping[str, NDArray]) -> None:
    """Replace these products with weights by products of bytes; `moments` are those of their inputs, by name."""
    array, tensor = need("onnx").numpy_helper.to_array, need("onnx").numpy_helper.from_array
    graph = model.graph
    stored = {one.name: one for one in graph.initializer}
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    nodes: list[Any] = _first_rows(graph.input[0].name) if chosen else []
    constants = dict(_CONSTANTS)
    bar = tqdm(total=len(chosen), desc="8 bits", unit="layer", leave=False)
    for node in graph.node:
        if node.name not in chosen:
            nodes.append(node)
            continue
        tokens, weight = node.input
        values, scales = round_weight(array(stored[weight]), moments[tokens])
        constants |= {f"{weight}.int8": values, f"{weight}.scale": scales}
        after_gelu = made_by.get(tokens) == "Gelu"
        shift = _GELU_MIN * (values * scales.astype(np.float64)).sum(0)
        constants[f"{node.output[0]}.shift"] = shift.astype(np.float32)
        nodes += _product_of_bytes(node, after_gelu=after_gelu)
        bar.update()
    bar.close()
    used = {name for node in nodes for name in node.input}
    initializers = [one for one in graph.initializer if one.name in used]
    initializers += [tensor(np.asarray(one), name) for name, one in constants.items() if name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def _first_rows(image: str) -> list[Any]:
    """Where the first token of every image of the batch is: int64 (B, 2), its image and 0."""
    make = need("onnx").helper.make_node
    return [
        make("Shape", [image], ["8bit.batch"], name="8bit.Shape", start=0, end=1),
        make("Squeeze", ["8bit.batch"], ["8bit.images"], name="8bit.Squeeze"),
        make("Range", ["8bit.0", "8bit.images", "8bit.1"], ["8bit.numbers"], name="8bit.Range"),
        make("Unsqueeze", ["8bit.numbers", "8bit.axis"], ["8bit.column"], name="8bit.Unsqueeze"),
        make("Pad", ["8bit.column", "8bit.pad"], ["8bit.rows"], name="8bit.Pad"),
    ]


def _product_of_bytes(node: Any, *, after_gelu: bool) -> list[Any]:
    """The nodes that take the place of a product: y = top · dequantise(quantise(x / top)) · dequantise(w).

    Top is the largest value of every token. It is divided by first, so that one constant scale serves all tokens: the
    form in which runtimes find products of bytes. After GELU, values are shifted to begin at 0, which spares the sign.
    What is left of the first token is quantised and multiplied in the same way, and added to its row.
    """
    make = need("onnx").helper.make_node
    steps: list[Any] = []
    tokens, weight, output = node.input[0], node.input[1], node.output[0]

    def add(operator: str, *inputs: str, to: str = "", **attributes: int | str) -> str:
        name = to or f"{output}.{operator}{len(steps)}"
        steps.append(make(operator, inputs, [name], name=f"{node.name}.{operator}{len(steps)}", **attributes))
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
