"""Vision towers of open_clip, such as BiomedCLIP's, as encoders. The text tower is neither built nor loaded."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from vivid_monai.errors import VividError, cut, first_line
from vivid_monai.evaluation.encoders.base import Encoder, library, load_strictly, square_preprocess, structure
from vivid_monai.evaluation.encoders.from_timm import timm_pool
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.checkpoint import read_checkpoint
from vivid_monai.networks.language import HUB_NAME
from vivid_monai.networks.pooling import choose_pool

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
RESIZE = {"shortest": "crop", "squash": "stretch", "longest": "pad"}


class OpenClipEncoder(Encoder):
    """A vision tower of open_clip.

    Tokens are those after the last LayerNorm, before the projection to the space shared with text. "pooled" is the
    embedding in that space, not normalised.
    """

    kind = "open_clip"

    def tokens(self, images: Tensor) -> Tensor:
        if hasattr(self.network, "trunk"):
            return self.network.trunk.forward_features(images)
        output = self.network.forward_intermediates(
            images, indices=1, normalize_intermediates=True, output_fmt="NLC", output_extra_tokens=True
        )
        return torch.cat((output["image_intermediates_prefix"][0], output["image_intermediates"][0]), dim=1)


def load_open_clip(name: str, *, pool: str | None = None) -> OpenClipEncoder:
    """The encoder of a folder with open_clip_config.json and weights, or of a hub name that has them.

    Raises:
        VividError: open_clip is not installed; files are missing; the tensors are not those of the configuration; the
            preprocessing is not complete or cannot be expressed.
    """
    open_clip, source = library("open_clip", "open_clip_torch"), f"open_clip:{name}"
    config_file, weights_file = _files(name)
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        model, images = config["model_cfg"], config["preprocess_cfg"]
        vision = {**model["vision_cfg"], "timm_model_pretrained": False}
        tower = open_clip.model._build_vision_tower(
            model["embed_dim"], vision, quick_gelu=model.get("quick_gelu", False)
        )
    except Exception as error:  # open_clip and timm raise their own kinds on configurations they do not know
        raise VividError(f"{source}: {CONFIG} cannot be used: {cut(repr(error), 120)}") from error
    preprocess = _preprocess(open_clip, images, vision, source)
    tensors = {name.removeprefix("module."): tensor for name, tensor in read_checkpoint(weights_file).tensors.items()}
    visual = {name.removeprefix("visual."): t for name, t in tensors.items() if name.startswith("visual.")}
    load_strictly(tower, visual, f"{source}: {weights_file.name} does not fit {CONFIG}")
    if hasattr(tower, "trunk"):
        pool, prefix = timm_pool(tower.trunk, pool), getattr(tower.trunk, "num_prefix_tokens", 0)
    else:
        tokens = hasattr(tower, "class_embedding") and getattr(tower, "attn_pool", None) is None
        pool, prefix = choose_pool(pool, cls=tokens, patches=tokens), 1
    return OpenClipEncoder(
        tower,
        preprocess,
        pool=pool,
        prefix=prefix,
        source=source,
        architecture=f"{vision.get('timm_model_name') or type(tower).__name__} (open_clip)",
        settings=structure(tower),
    )


def _files(name: str) -> tuple[Path, Path]:
    folder = Path(name).expanduser()
    if folder.exists():
        weights = [folder / file for file in WEIGHTS if (folder / file).is_file()]
        if not (folder / CONFIG).is_file() or not weights:
            raise VividError(f"open_clip:{name}: a folder with {CONFIG} and one of {', '.join(WEIGHTS)} is needed")
        return folder / CONFIG, weights[0]
    hub_name = name.removeprefix("hf-hub:")
    if not HUB_NAME.fullmatch(hub_name):
        raise VividError(f"open_clip:{name}: no such folder")
    problem: Exception = OSError()
    for file in WEIGHTS:
        try:
            return Path(hf_hub_download(hub_name, CONFIG)), Path(hf_hub_download(hub_name, file))
        except Exception as error:  # no connection, no such repository, no such file
            problem = error
    raise VividError(
        f"open_clip:{name}: no such folder, and the hub does not give it ({first_line(problem)}). Where there is a "
        f"connection run `hf download {hub_name} --local-dir FOLDER` and give that folder instead"
    ) from problem


def _preprocess(open_clip: Any, said: Any, vision: dict[str, Any], where: str) -> Preprocess:
    missing = [key for key in ("mean", "std") if not said.get(key)]
    if missing:
        raise VividError(f"{where}: {CONFIG} does not say {', '.join(missing)} in preprocess_cfg")
    size = said.get("size") or vision["image_size"]
    # What the file leaves out has open_clip's own values: bicubic, short side.
    config = open_clip.transform.PreprocessCfg(**{**said, "size": size})
    if config.fill_color and config.resize_mode == "longest":
        raise VividError(f"{where}: fill_color = {config.fill_color} in preprocess_cfg cannot be expressed")
    return square_preprocess(
        f"{where}, preprocess_cfg",
        size,
        ("resize_mode", config.resize_mode, RESIZE),
        config.interpolation,
        channels=config.num_channels,
        mean=tuple(config.mean),
        std=tuple(config.std),
    )
