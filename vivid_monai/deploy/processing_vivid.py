"""From an image to the input of a classifier in transformers, exactly. This file goes into Hugging Face folders.

An image processor of transformers makes every image RGB of 8 bits, or knows no padding; and its pipelines clip 16 bits.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate, pad
from transformers import BatchFeature, ImageClassificationPipeline
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import load_image

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class VividImageProcessor(BaseImageProcessor):
    """Images of any kind → float32 (B, C, H, W), as the classifier was trained: grey, scaled once, rounded once.

    Args:
        vivid: the preprocessing of vivid-monai, as plain values.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - as transformers reads it

    def __init__(self, vivid: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vivid = vivid

    def preprocess(self, images: Any, return_tensors: str | None = None, **_: Any) -> BatchFeature:
        """One image or a list of them.

        Args:
            images: Pillow's, or arrays and tensors (H, W), (H, W, 3) or (3, H, W), of 8 or 16 bits or of floating
                point in [0, 1]; bright = dense.

        Raises:
            ValueError: transparent pixels, or a colour mode or an array that is none of these.
        """
        several = images if isinstance(images, list | tuple) else [images]
        pixels = torch.stack([self._input(one) for one in several])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _input(self, image: Any) -> Tensor:
        given: Any = self.vivid
        size, to, resize = given["size"], given["resize_to"], given["resize"]
        values = torch.from_numpy(grey_of(image))[None, None]
        height, width = values.shape[-2:]
        target = (to, to)
        if resize == "pad":
            scale = size / max(height, width)
            target = (max(1, round(height * scale)), max(1, round(width * scale)))
        elif resize == "crop":
            short = min(height, width)
            target = (to * height // short, to * width // short)
        if target != (height, width):
            values = interpolate(values, target, mode=given["interpolation"], antialias=True)
        values = values.clamp(0, 1).mul(255).round()
        height, width = ((size - one) // 2 for one in target)
        if resize == "pad":
            values = pad(values, (width, size - target[1] - width, height, size - target[0] - height))
        else:
            top, left = (one // 2 - size // 2 for one in target)
            values = values[..., top : top + size, left : left + size]
        mean, std = (torch.tensor(given[name]).view(-1, 1, 1) for name in ("mean", "std"))
        return (values[0] / 255 - mean) / std  # as many channels as mean and std have numbers


def grey_of(image: Any) -> np.ndarray:
    """An image as float32 (H, W) in [0, 1]; 16-bit values are scaled by 8, 10, 12, 14 or 16 bits, what they fit in."""
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode == "P" or "transparency" in image.info:
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        if image.mode in ("LA", "RGBA"):
            if np.asarray(image)[..., -1].min() < 255:
                raise ValueError("has transparent pixels, whose grey value is undefined; save it without alpha")
            image = image.convert(image.mode[:-1])
        if image.mode not in ("1", "L", "RGB", "I") and not image.mode.startswith("I;16"):
            raise ValueError(f"colour mode {image.mode} is not supported; save it as grey")
        values = np.asarray(image, np.float32 if image.mode == "1" else None)
    else:
        values = np.asarray(image)
        if values.ndim == 3 and values.shape[0] in (1, 3):
            values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] != 3):
        raise ValueError(f"an array of shape {values.shape} is no grey or RGB image")
    top = 1.0
    if values.dtype.kind in "iu":
        largest = int(values.max())
        top = 2.0 ** (8 if values.dtype == np.uint8 else next(n for n in (8, 10, 12, 14, 16, 64) if largest < 2**n)) - 1
    values = values.astype(np.float32)
    if values.ndim == 3:
        values = values[..., 0] if (values == values[..., :1]).all() else values @ _LUMA
    if not (values.min() >= 0 and values.max() <= top <= 65535):
        raise ValueError("holds values outside of 8 or 16 bits or of floating point in [0, 1]")
    return values / np.float32(top)


class VividImageClassificationPipeline(ImageClassificationPipeline):
    """``pipeline("image-classification")`` that gives images to the processor as they are."""

    def preprocess(self, image: Any, timeout: float | None = None) -> BatchFeature:
        """A file, an address, Pillow's image or an array."""
        if isinstance(image, str):
            image = Image.open(image) if os.path.isfile(image) else load_image(image, timeout=timeout)
        return self.image_processor(images=image, return_tensors="pt").to(self.dtype)
