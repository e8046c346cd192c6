"""The image processor that comes with a transformers model, as our own preprocessing."""

from collections.abc import Mapping
from typing import Any

import transformers
from PIL.Image import Resampling
from transformers.image_processing_backends import PilBackend
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess

# Processors that do what their keys say: resize, cut the middle out, scale, normalise.
KNOWN = ("Beit", "Bit", "CLIP", "ConvNext", "DINOv3ViT", "DeiT", "Siglip", "ViT")
INTERPOLATIONS = {Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}
# Keys of a file that say nothing of what happens to a grey image.
SILENT = {
    *("auto_map", "feature_extractor_type", "image_processor_type", "processor_class", "_valid_processor_keys"),
    *("data_format", "device", "disable_grouping", "input_data_format", "return_tensors"),
    *("default_to_square", "do_convert_rgb", "do_reduce_labels", "image_seq_length"),
}
READ = {
    *("do_resize", "size", "resample", "crop_pct", "do_center_crop", "crop_size", "do_pad"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
}


def read_processor(values: Mapping[str, Any], *, model_type: str, channels: int) -> Preprocess:
    """What a ``preprocessor_config.json`` says.

    Keys that the file leaves out have the value its processor's class gives them, as in transformers itself.

    Args:
        values: the file's content.
        model_type: of the model's configuration; names the processor where the file does not.
        channels: that the network takes.

    Raises:
        VividError: a processor that is unknown or does what :class:`Preprocess` cannot say; the message names the key.
    """
    name = _processor_name(values, model_type)
    for key in values.keys() - READ - SILENT:
        if values[key] not in (None, False):
            raise _error(key, values[key], "is not known")
    # The classes that need torchvision have twins that do not, with the same defaults; DINOv3's has none, and no
    # defaults then: its file must say everything.
    kind = getattr(transformers, f"{name}Pil", PilBackend)
    try:
        processor = kind.from_dict(dict(values))
    except Exception as error:  # transformers raises several kinds on values it cannot read
        raise VividError(f"preprocessor_config.json: {name} does not take these values: {error}") from error

    interpolation = INTERPOLATIONS.get(_said(processor, "resample"))
    if interpolation is None:
        raise _error("resample", processor.resample, "must be 2 (bilinear) or 3 (bicubic)")
    if processor.do_pad:
        raise _error("do_pad", True, "cannot be expressed")
    resize, resize_to, size = _geometry(processor, convnext=name.startswith("ConvNext"))
    mean, std = _statistics(processor)
    return Preprocess(
        size=size,
        channels=channels,
        mean=mean,
        std=std,
        resize=resize,
        resize_to=resize_to,
        interpolation=interpolation,  # type: ignore[arg-type]
    )


def _processor_name(values: Mapping[str, Any], model_type: str) -> str:
    named = values.get("image_processor_type")
    if named is None:
        named = str(values.get("feature_extractor_type", "")).replace("FeatureExtractor", "ImageProcessor")
    if not named:
        named = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {}).get("torchvision", "")
    name = named.removesuffix("Fast").removesuffix("Pil")
    if name not in {f"{known}ImageProcessor" for known in KNOWN}:
        raise _error("image_processor_type", named or None, f"must be that of {', '.join(KNOWN)}")
    return name


def _geometry(processor: Any, *, convnext: bool) -> tuple[Any, int, int]:
    """(resize, resize_to, size) of a Preprocess."""
    if not _said(processor, "do_resize"):
        raise _error("do_resize", processor.do_resize, "must be true: images come in all sizes")
    said = {key: value for key, value in dict(_said(processor, "size")).items() if value is not None}
    match said:
        case {"shortest_edge": edge} if len(said) == 1:
            resize, resize_to = "crop", edge
        case {"height": height, "width": width} if len(said) == 2 and height == width and not convnext:
            resize, resize_to = "stretch", height
        case {"height": _, "width": _} if not convnext:
            raise _error("size", said, "is not square; only square images are supported")
        case _:
            raise _error("size", said, "cannot be expressed")
    if convnext:  # below 384 pixels it resizes to more and cuts, from there on it stretches
        return ("crop", int(edge / _said(processor, "crop_pct")), edge) if edge < 384 else ("stretch", edge, edge)
    if not processor.do_center_crop:
        if resize == "crop":
            raise _error("do_center_crop", processor.do_center_crop, "must be true where size is a shortest_edge")
        return resize, resize_to, resize_to
    crop = dict(_said(processor, "crop_size"))
    if crop.get("height") != crop.get("width") or not crop.get("height"):
        raise _error("crop_size", crop, "is not square; only square images are supported")
    if crop["height"] > resize_to:
        raise _error("crop_size", crop["height"], f"is larger than the resized image ({resize_to})")
    return resize, resize_to, crop["height"]


def _statistics(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation on the scale [0, 1], whatever the processor rescales its bytes to."""
    factor = _said(processor, "rescale_factor") if _said(processor, "do_rescale") else 1.0
    normalised = _said(processor, "do_normalize")
    mean, std = (_said(processor, "image_mean"), _said(processor, "image_std")) if normalised else (0.0, 1.0)
    # Up to the rounding of 1/255 the usual factor is 1 / 255 exactly, and its numbers should stay as they are written.
    unit = 1.0 if abs(factor * 255 - 1) < 1e-6 else factor * 255
    return tuple(
        tuple(value / unit for value in (numbers if isinstance(numbers, list | tuple) else [numbers]))
        for numbers in (mean, std)
    )  # type: ignore[return-value]


def _said(processor: Any, key: str) -> Any:
    value = getattr(processor, key, None)
    if value is None:
        raise _error(key, None, "is missing")
    return value


def _error(key: str, value: Any, why: str) -> VividError:
    return VividError(f"preprocessor_config.json: {key} = {value!r} {why}")
