"""Vision models of transformers as encoders, from a folder or the hub. Code that comes with a model is never run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL.Image import Resampling
from transformers import AutoConfig, AutoModel
from transformers.image_processing_backends import PilBackend
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.utils import logging

from vivid_monai.checks import refuse_pointers
from vivid_monai.errors import VividError, first_line
from vivid_monai.evaluation.encoders.base import VividEncoder, library_encoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.language import HUB_NAME
from vivid_monai.networks.library import TRANSFORMERS_SAY_NOTHING, drop_pooler, offers
from vivid_monai.networks.pooling import choose_pool

# What a checkpoint may hold beside the encoder: heads, decoders and the text towers of pairs.
BESIDE = {
    *("classifier", "cls_classifier", "distillation_classifier", "decoder", "head", "lm_head"),
    *("logit_bias", "logit_scale", "text_model", "text_projection", "visual_projection"),
}
# Tensors without influence on a frozen network: they may be absent or left over.
INERT = ("mask_token", "num_batches_tracked", "position_ids")


def load_transformers(name: str, *, pool: str | None = None, pretrained: bool = True) -> VividEncoder:
    """The encoder of a folder of ``save_pretrained``, or of a hub name where there is no such folder.

    A folder needs no network. A hub name is looked for in the hub's cache first, then asked of the hub (not where
    HF_HUB_OFFLINE is set). Of a pair of towers, as CLIP's, the vision tower is taken.

    "mean" leaves CLS, register and distillation tokens out. "pooled" is the network's own output: the attention pooling
    of SigLIP, the average over the map of ResNet and ConvNeXt.

    Args:
        pretrained: False: fresh weights; no file of weights is needed.

    Raises:
        VividError: it cannot be had; has no preprocessor_config.json, or one that cannot be expressed; lacks weights
            or has ones that the network has no place for; is no vision model.
    """
    folder = Path(name).expanduser()
    if folder.exists() and not (folder / "config.json").is_file():
        raise VividError(f"{name}: not a folder with a config.json, as a transformers model has it")
    if not folder.exists() and not HUB_NAME.fullmatch(name):
        raise VividError(f"{name}: no such folder")
    place = str(folder) if folder.exists() else name
    refuse_pointers([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    try:
        try:
            config, preprocess, loaded = _read(place, offline=True, pretrained=pretrained)
        except OSError:
            if folder.exists():
                raise
            config, preprocess, loaded = _read(place, offline=False, pretrained=pretrained)
    except VividError as error:
        raise VividError(f"{name}: {error}") from error
    except OSError as error:
        way_out = (
            ": no such folder, not whole in the hub's cache on this machine, and the hub does not give it. Where there "
            f"is a connection run `hf download {name} --local-dir FOLDER`, copy FOLDER here and give its path instead "
            "of the name"
        )
        raise VividError(f"{name}: {first_line(error)}{'' if folder.exists() else way_out}") from error
    except Exception as error:  # transformers, safetensors and pickle each raise their own kinds on a broken file
        raise VividError(f"{name}: cannot be read as a vision model: {first_line(error)}") from error
    said = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    said = {key: value for key, value in said.items() if key not in TRANSFORMERS_SAY_NOTHING}
    tensors = None
    if loaded:
        model, report = loaded
        if model.main_input_name != "pixel_values":
            raise VividError(f"{name}: a {model.config.model_type} model takes no images")
        cls, patches = offers("transformers", said)
        if choose_pool(pool, cls=cls, patches=patches) != "pooled":
            drop_pooler(model)
        _check_keys(model, report, name)
        tensors = model.state_dict()
    return library_encoder("transformers", said, preprocess, pool=pool, source=name, tensors=tensors)


def _read(place: str, *, offline: bool, pretrained: bool) -> tuple[Any, Preprocess, tuple[Any, dict[str, Any]] | None]:
    """Configuration, preprocessing, and the model with transformers' report on its tensors where it is to be loaded.

    Raises an OSError where a file is not there.
    """
    where = {"local_files_only": offline, "trust_remote_code": False}
    values: dict[str, Any] = {}
    with _quiet():
        config = AutoConfig.from_pretrained(place, **where)
        with suppress(OSError):
            values, _ = PilBackend.get_image_processor_dict(place, local_files_only=offline)
        if not values:
            raise FileNotFoundError(
                "has no preprocessor_config.json, or a broken one, and how its images are prepared is not to be "
                "guessed; write one with its image processor's save_pretrained"
            )
        vision = getattr(config, "vision_config", None) or config
        if vision.model_type == "vit_mae":
            vision.mask_ratio = 0.0
        preprocess = read_processor(values, model_type=config.model_type, channels=getattr(vision, "num_channels", 3))
        if not pretrained:
            return vision, preprocess, None
        with torch.random.fork_rng(devices=[]):
            loaded: Any = AutoModel.from_pretrained(
                # Of another size than config.json says: `_check_keys` names them, transformers only its own option.
                place,
                config=vision,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **where,
            )
    return vision, preprocess, loaded


def _check_keys(model: Any, report: dict[str, Any], name: str) -> None:
    own = model.state_dict().keys()
    missing = [key for key in report["missing_keys"] if key in own and not key.endswith(INERT)]
    foreign = [
        key for key in report["unexpected_keys"] if not key.endswith(INERT) and BESIDE.isdisjoint(key.split(".")[:2])
    ]
    for key, stored, wanted in sorted(report["mismatched_keys"])[:1]:
        sizes = f"{'x'.join(map(str, stored))} in the file, {'x'.join(map(str, wanted))} by config.json"
        raise VividError(f"{name}: config.json is of another model than the weights: {key} is {sizes}")
    for keys, what in ((missing, "lacks weights"), (foreign, "has weights without a place")):
        if keys:
            some = ", ".join(sorted(keys)[:4])
            raise VividError(f"{name}: as a {type(model).__name__} it {what}: {some} ({len(keys)} in all)")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of keys and its bars: what matters of them is checked here and raised."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


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

    def require(condition: Any, key: str, value: Any, why: str) -> None:
        if not condition:
            raise VividError(f"preprocessor_config.json: {key} = {value!r} {why}")

    def said(key: str) -> Any:
        value = getattr(processor, key, None)
        require(value is not None, key, None, "is missing")
        return value

    named = values.get("image_processor_type") or str(values.get("feature_extractor_type", ""))
    named = named.replace("FeatureExtractor", "ImageProcessor")
    named = named or IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {}).get("torchvision", "")
    name = named.removesuffix("Fast").removesuffix("Pil")
    known = name in {f"{one}ImageProcessor" for one in KNOWN}
    require(known, "image_processor_type", named or None, f"must be that of {', '.join(KNOWN)}")
    for key in values.keys() - READ - SILENT:
        require(values[key] in (None, False), key, values[key], "is not known")
    try:
        # The classes that need torchvision have twins that do not, with the same defaults; DINOv3's has none, and no
        # defaults then: its file must say everything.
        processor = getattr(transformers, f"{name}Pil", PilBackend).from_dict(dict(values))
    except Exception as error:  # transformers raises several kinds on values it cannot read
        raise VividError(f"preprocessor_config.json: {name} does not take these values: {first_line(error)}") from error

    interpolation = INTERPOLATIONS.get(said("resample"))
    require(interpolation, "resample", processor.resample, "must be 2 (bilinear) or 3 (bicubic)")
    require(not processor.do_pad, "do_pad", True, "cannot be expressed")
    require(said("do_resize"), "do_resize", False, "must be true: images come in all sizes")
    sides = {key: value for key, value in dict(said("size")).items() if value is not None}
    convnext = name.startswith("ConvNext")
    resize = "crop" if sides.keys() == {"shortest_edge"} else "stretch"
    known = resize == "crop" or (sides.keys() == {"height", "width"} and not convnext)
    require(known, "size", sides, "cannot be expressed")
    not_square = "is not square; only square images are supported"
    require(len({*sides.values()}) == 1, "size", sides, not_square)
    size = resize_to = next(iter(sides.values()))
    if convnext:  # below 384 pixels it resizes to more and cuts, from there on it stretches
        resize, resize_to = ("crop", int(size / said("crop_pct"))) if size < 384 else ("stretch", size)
    elif processor.do_center_crop:
        crop = dict(said("crop_size"))
        size = crop.get("height")
        require(size and size == crop.get("width"), "crop_size", crop, not_square)
        require(size <= resize_to, "crop_size", size, f"is larger than the resized image ({resize_to})")
    else:
        why = "must be true where size is a shortest_edge"
        require(resize == "stretch", "do_center_crop", processor.do_center_crop, why)
    factor = said("rescale_factor") if said("do_rescale") else 1.0
    # Up to the rounding of 1/255 the usual factor is 1 / 255 exactly, and its numbers should stay as they are written.
    unit = 1.0 if abs(factor * 255 - 1) < 1e-6 else factor * 255
    mean, std = (said("image_mean"), said("image_std")) if said("do_normalize") else (0.0, 1.0)
    mean, std = (tuple((np.atleast_1d(numbers) / unit).tolist()) for numbers in (mean, std))
    return Preprocess(
        size=size,
        channels=channels,
        mean=mean,
        std=std,
        resize=resize,  # type: ignore[arg-type]
        resize_to=resize_to,
        interpolation=interpolation,  # type: ignore[arg-type]
    )
