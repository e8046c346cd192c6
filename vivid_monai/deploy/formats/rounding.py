"""Weights in 8 bits, rounded so that the errors of a layer's inputs cancel."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vivid_monai.deploy.formats.onnx_classifier import INPUT, OnnxClassifier, need
from vivid_monai.errors import VividError

_DAMPING = 0.01  # of the mean of the diagonal, as in GPTQ
_BLOCK = 64
_APART = 7  # of so many patch tokens one is looked at
_BATCH = 8
_SUM = 128  # of two neighbours: 255 · 128 is the last product of inputs up to 255 that fits into 16 bits


def round_weight(
    weight: NDArray[np.float32], moments: NDArray[np.floating]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight as int8, and the scale of each output.

    One input after the other is rounded, and what that does to the outputs is made good by the inputs that are still to
    come, as far as they go together (GPTQ: Frantar et al. 2023, arXiv:2210.17323).

    Processors without VNNI add the products of two neighbours in 16 bits and cut off what does not fit, the
    "saturation issue" of the manuals of ONNX Runtime and OpenVINO; in most layers it would add errors of 2 to 5 %. With
    inputs up to 255, all fits where two neighbours add up to at most 128; scales and rounding see to that.

    Args:
        weight: (inputs, outputs), an even number of inputs.
        moments: (inputs, inputs), Σ x xᵀ of inputs x, up to a factor.

    Returns:
        int8 (inputs, outputs) and float32 (outputs,), whose product is the weight.
    """
    exact = torch.tensor(weight, dtype=torch.float64)
    pairs = exact.reshape(-1, 2, weight.shape[1])
    top = torch.maximum(pairs.clamp(min=0).sum(1), -pairs.clamp(max=0).sum(1)).amax(0)
    scales = (torch.where(top > 0, top, 1) / 127).float()
    going_together = torch.tensor(moments, dtype=torch.float64)
    order = going_together.diag().argsort(descending=True, stable=True)
    upper = _factor(going_together[order][:, order])
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


def input_moments(
    classifier: OnnxClassifier, model: Any, products: Iterable[str], images: Iterable[ArrayLike]
) -> dict[str, NDArray[np.float32]]:
    """The inputs of these products, by name → their second moments (D, D) on some images.

    The first token counts as much as all others together: the head reads it.

    Args:
        classifier: what runs the model.
        model: the same as an ONNX model.
        products: names of nodes.
        images: float32 (C, H, W) each.

    Raises:
        VividError: no image, or one of another shape.
    """
    onnx, names = need("onnx"), set(products)
    tokens = sorted({node.input[0] for node in model.graph.node if node.name in names})
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tokens)
    session = need("onnxruntime").InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    moments: dict[str, Any] = dict.fromkeys(tokens, 0)
    n, left = 0, iter(images)
    while some := list(islice(left, _BATCH)):
        batch = np.stack([np.asarray(one) for one in some])
        classifier.check(batch)
        n += len(batch)
        for name, values in zip(tokens, session.run(tokens, {INPUT: batch}), strict=True):
            first, others = values[:, 0], values[:, 1::_APART].reshape(-1, values.shape[-1])
            moments[name] += first.T @ first + others.T @ others * (len(first) / len(others))
    if not n:
        raise VividError("8 bits need images to round for, some hundred of those the classifier was trained on")
    return moments
