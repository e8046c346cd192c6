"""Vision models of transformers as encoders, from a folder or the hub. Code that comes with a model is never run."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Resampling
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.image_processing_backends import PilBackend
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.utils import cached_file, logging

from vivid_monai.errors import VividError, first_line
from vivid_monai.evaluation.encoders.base import Encoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.language import HUB_NAME
from vivid_monai.networks.pooling import choose_pool, pool_tokens

# Model types whose last hidden state is tokens, and how many stand before the patches': 0, or CLS and whatever follows
# it. Register tokens (config.num_register_tokens) come on top.
PREFIX = {
    "beit": 1,
    "clip_vision_model": 1,
    "data2vec-vision": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "ijepa": 0,
    "siglip_vision_model": 0,
    "vit": 1,
    "vit_mae": 1,
    "vit_msn": 1,
}
# What a checkpoint may hold beside the encoder: heads, decoders and the text towers of pairs.
BESIDE = {
    *("classifier", "cls_classifier", "distillation_classifier", "decoder", "head", "lm_head"),
    *("logit_bias", "logit_scale", "text_model", "text_projection", "visual_projection"),
}
# Tensors without influence on a frozen network: they may be absent or left over.
INERT = ("mask_token", "num_batches_tracked", "position_ids")
# Keys of a configuration that change no feature.
VOLATILE = {"architectures", "dtype", "id2label", "label2id", "problem_type", "torch_dtype", "transformers_version"}


class TransformersEncoder(Encoder):
    """The vision tower of a transformers model.

    Tokens are those after the last LayerNorm. "mean" leaves CLS, register and distillation tokens out. "pooled"
    is the network's own output: the attention pooling of SigLIP, the average over the map of ResNet and ConvNeXt.
    """

    kind = "transformers"

    def __init__(self, model: Any, preprocess: Preprocess, *, pool: str, source: str) -> None:
        self.architecture = type(model).__name__
        config = model.config
        self.prefix = PREFIX.get(config.model_type, 0)
        if self.prefix:
            self.prefix += getattr(config, "num_register_tokens", None) or 0
        settings = {
            key: value for key, value in config.to_dict().items() if key not in VOLATILE and not key.startswith("_")
        }
        super().__init__(model, preprocess, pool=pool, source=source, settings=settings)

    def forward(self, images: Tensor) -> Tensor:
        more = {}
        if self.network.config.model_type == "vit_mae":  # with nothing masked, the noise is the order of the patches
            order = torch.arange(self.network.embeddings.patch_embeddings.num_patches, device=images.device)
            more["noise"] = order.expand(len(images), -1).float()
        output = self.network(pixel_values=images, **more)
        if self.pool == "pooled":
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise VividError("it gives no pooled output, and where its tokens stand is not known")
            return pooled.flatten(1).float()
        tokens = output.last_hidden_state
        if self.network.config.model_type == "clip_vision_model":  # applied there to the CLS token alone
            tokens = _tower(self.network).post_layernorm(tokens)
        return pool_tokens(tokens.float(), self.pool, prefix=self.prefix)


def load_transformers(name: str, *, pool: str | None = None) -> TransformersEncoder:
    """The encoder of a folder of ``save_pretrained``, or of a hub name where there is no such folder.

    A folder needs no network. A hub name is looked for in the hub's cache first, then asked of the hub (not where
    HF_HUB_OFFLINE is set). Of a pair of towers, as CLIP's, the vision tower is taken.

    Raises:
        VividError: it cannot be had; has no preprocessor_config.json, or one that cannot be expressed; lacks weights
            or has ones that the network has no place for; is no vision model.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise VividError(f"{name}: not a folder with a config.json, as a transformers model has it")
        return _read(str(folder), name, pool, offline=True)
    if not HUB_NAME.fullmatch(name):
        raise VividError(f"{name}: no such folder")
    try:
        return _read(name, name, pool, offline=True)
    except _NotThereError:
        pass
    try:
        return _read(name, name, pool, offline=False)
    except _NotThereError as error:
        raise VividError(
            f"{error}: no such folder, not whole in the hub's cache on this machine, and the hub does not give it. "
            f"Where there is a connection run `hf download {name} --local-dir FOLDER`, copy FOLDER here and give its "
            "path instead of the name"
        ) from error


class _NotThereError(VividError):
    """A file of the model could not be had."""


def _read(place: str, name: str, pool: str | None, *, offline: bool) -> TransformersEncoder:
    where = {"local_files_only": offline, "trust_remote_code": False}
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(place, **where)
            values = _processor_values(place, offline)
            if not values:
                raise _NotThereError(
                    f"{name}: has no preprocessor_config.json, and how its images are prepared is not to be guessed; "
                    "write one with its image processor's save_pretrained"
                )
            vision = getattr(config, "vision_config", None) or config
            if vision.model_type == "vit_mae":
                vision.mask_ratio = 0.0
            preprocess = read_processor(
                values, model_type=config.model_type, channels=getattr(vision, "num_channels", 3)
            )
            loaded: Any = AutoModel.from_pretrained(
                place, config=vision, dtype=torch.float32, output_loading_info=True, **where
            )
    except _NotThereError:
        raise
    except VividError as error:
        raise VividError(f"{name}: {error}") from error
    except OSError as error:
        raise _NotThereError(f"{name}: {first_line(error)}") from error
    except Exception as error:  # transformers, safetensors and pickle each raise their own kinds on a broken file
        raise VividError(f"{name}: cannot be read as a vision model: {first_line(error)}") from error
    model, report = loaded
    if model.main_input_name != "pixel_values":
        raise VividError(f"{name}: a {model.config.model_type} model takes no images")
    return _encoder(model, report, preprocess, name, pool)


def _processor_values(place: str, offline: bool) -> dict[str, Any]:
    """The image processor's part of a processor's file, or the file of its own; {} where there is neither."""
    for file, part in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        try:
            found = cached_file(place, file, local_files_only=offline)
        except OSError:
            continue
        values = json.loads(Path(str(found)).read_text(encoding="utf-8"))
        if part is None or part in values:
            return values if part is None else values[part]
    return {}


def _encoder(
    model: Any, report: dict[str, Any], preprocess: Preprocess, name: str, asked: str | None
) -> TransformersEncoder:
    kind = model.config.model_type
    pool = choose_pool(asked, cls=PREFIX.get(kind, 0) > 0, patches=kind in PREFIX)
    if pool != "pooled":
        _drop_pooler(model)
    own = model.state_dict().keys()
    missing = [key for key in report["missing_keys"] if key in own and not key.endswith(INERT)]
    foreign = [
        key for key in report["unexpected_keys"] if not key.endswith(INERT) and BESIDE.isdisjoint(key.split(".")[:2])
    ]
    wrong = [str(key) for key in report["mismatched_keys"]]
    for keys, what in ((missing, "lacks weights"), (foreign, "has weights without a place"), (wrong, "misfits")):
        if keys:
            some = ", ".join(sorted(keys)[:4])
            raise VividError(f"{name}: as a {type(model).__name__} it {what}: {some} ({len(keys)} in all)")
    return TransformersEncoder(model, preprocess, pool=pool, source=name)


def _drop_pooler(model: Any) -> None:
    """Take away the part behind the tokens, where it would not be used: checkpoints often lack it."""
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    tower = _tower(model)
    if getattr(tower, "use_head", False):
        tower.use_head = False
        del tower.head


def _tower(model: Any) -> Any:
    """Where CLIP and SigLIP keep their layers: earlier versions of transformers wrap them once more."""
    return getattr(model, "vision_model", model)


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
