"""What every exported file is held to, and what it says of itself: preprocessing, fields, versions."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib.metadata import version
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from vivid_monai.deploy.formats.onnx_classifier import FORMAT
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import Classifier

TOLERANCE = 1e-4
BATCHES = (1, 2, 5)


def describe(classifier: Classifier, preprocess: Preprocess, fields: Sequence[str]) -> dict[str, Any]:
    """Format, preprocessing, fields and versions of an exported classifier; JSON-serialisable.

    Raises:
        VividError: they do not belong to this classifier.
    """
    logits, shape = classifier.head.out_features, classifier.encoder.image_shape
    seen = (max(preprocess.channels, preprocess.slices), preprocess.size, preprocess.size)
    if len(fields) != logits or len(set(fields)) != len(fields):
        raise VividError(f"{len(fields)} fields ({len(set(fields))} different ones) for a classifier of {logits}")
    if shape != seen:
        raise VividError(f"the preprocessing makes images {seen}, the classifier is for {shape}: they do not belong")
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
    *,
    expected: Callable[[Tensor], tuple[Tensor, ...]],
    tolerance: float = TOLERANCE,
) -> None:
    """Hold an exported file against PyTorch on random images, in batches of 1, 2 and 5.

    Args:
        path: of the file, for the message.
        exported, expected: images (B, C, H, W) → tensors that must be equal one by one.
        tolerance: largest difference, as a part of the largest expected number where that is over 1: noise, which is
            what is asked, can get logits in the dozens.

    Raises:
        VividError: a difference over `tolerance`, or a shape that differs.
    """
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        images = torch.randn(batch, *classifier.encoder.image_shape, generator=generator)
        with torch.inference_mode():
            pairs = list(zip(exported(images), expected(images), strict=True))
        for got, wanted in pairs:
            same_shape = got.shape == wanted.shape
            difference = (
                ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item() if same_shape else torch.inf
            )
            if not difference <= tolerance:
                raise VividError(
                    f"{path}: a batch of {batch} differs from PyTorch's by {difference:.3g}, allowed is {tolerance:g}; "
                    "nothing was written"
                )
