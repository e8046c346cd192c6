"""Where the ViT looked: the attention of its last block, over the image as the network saw it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vivid_monai.evaluation.examples import blend
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import Classifier
from vivid_monai.storage.files import whole_file

SIDE = 448
"""Pixels of an overlay."""


@torch.no_grad()
def attention_maps(classifier: Classifier, images: Tensor) -> NDArray[np.float32]:
    """Attention that the pooled features rest on, in the last block, mean over its heads.

    That of the CLS token to the patches (Caron et al. 2021, arXiv:2104.14294), or where patches are pooled the mean of
    theirs. It tells what the last block gathered from, and neither why nor for which finding.

    Args:
        images: (B, C, H, W), preprocessed.

    Returns:
        float32 (B, h, w); what is missing to a sum of 1 lies on the CLS token.
    """
    vit = classifier.encoder
    attention: Any = vit.blocks[-1].attn
    kept = attention.use_flash_attention, attention.save_attn
    attention.use_flash_attention, attention.save_attn = False, True
    try:
        vit(images)
        weights = attention.att_mat.mean(1)
    finally:
        attention.use_flash_attention, attention.save_attn = kept
        attention.att_mat = torch.Tensor()
    rows = {"cls": weights[:, 0], "mean": weights[:, 1:].mean(1)}[classifier.pool]
    return rows[:, 1:].unflatten(1, vit.grid).numpy()


def save_overlay(image: Tensor, attention: NDArray[np.float32], preprocess: Preprocess, path: Path) -> None:
    """Write one map over its image (C, H, W), as preprocessed, as a PNG; whole or not at all."""
    mean, std = (np.atleast_1d(np.asarray(one))[0] for one in (preprocess.mean, preprocess.std))
    pixels = np.clip(image[0].numpy() * std + mean, 0, 1) * 255
    grey = (
        Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    )
    with whole_file(path) as part:
        blend(grey, attention).save(part, "PNG")
