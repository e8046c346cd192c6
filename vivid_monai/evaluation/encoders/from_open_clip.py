"""Vision towers of open_clip, such as BiomedCLIP's, as encoders. The text tower is neither built nor loaded."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from vivid_monai.errors import VividError, cut, first_line
from vivid_monai.evaluation.encoders.base import VividEncoder, library_encoder, square_preprocess
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.checkpoint import read_checkpoint
from vivid_monai.networks.language import HUB_NAME
from vivid_monai.networks.library import import_library

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
RESIZE = {"shortest": "crop", "squash": "stretch", "longest": "pad"}


def load_open_clip(name: str, *, pool: str | None = None, pretrained: bool = True) -> VividEncoder:
    """The encoder of a folder with open_clip_config.json and weights, or of a hub name that has them.

    Tokens are those after the last LayerNorm, before the projection to the space shared with text. "pooled" is the
    embedding in that space, not normalised.

    Args:
        pretrained: False: fresh weights; no file of weights is needed.

    Raises:
        VividError: open_clip is not installed; files are missing; the tensors are not those of the configuration; the
            preprocessing is not complete or cannot be expressed.
    """
    open_clip, source = import_library("open_clip", "open_clip_torch"), f"open_clip:{name}"
    config_file, weights_file = _files(name, weights=pretrained)
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        said, images = config["model_cfg"], config["preprocess_cfg"]
        model = {"embed_dim": said["embed_dim"], "vision_cfg": said["vision_cfg"]}
        model["quick_gelu"] = said.get("quick_gelu", False)
        preprocess = _preprocess(open_clip, images, said["vision_cfg"], source)
    except VividError:
        raise
    except Exception as error:  # open_clip raises its own kinds on configurations it does not know
        raise VividError(f"{source}: {CONFIG} cannot be used: {cut(repr(error), 120)}") from error
    visual, misfit = None, ""
    if weights_file:
        tensors = {key.removeprefix("module."): one for key, one in read_checkpoint(weights_file).tensors.items()}
        visual = {key.removeprefix("visual."): one for key, one in tensors.items() if key.startswith("visual.")}
        misfit = f"{source}: {weights_file.name} does not fit {CONFIG}"
    return library_encoder("open_clip", model, preprocess, pool=pool, source=source, tensors=visual, misfit=misfit)


def _files(name: str, *, weights: bool) -> tuple[Path, Path | None]:
    """The files of configuration and weights, the latter None where they are not asked for."""
    folder = Path(name).expanduser()
    wanted: tuple[str | None, ...] = WEIGHTS if weights else (None,)
    if folder.exists():
        found = [folder / file if file else None for file in wanted if file is None or (folder / file).is_file()]
        if not (folder / CONFIG).is_file() or not found:
            raise VividError(f"open_clip:{name}: a folder with {CONFIG} and one of {', '.join(WEIGHTS)} is needed")
        return folder / CONFIG, found[0]
    hub_name = name.removeprefix("hf-hub:")
    if not HUB_NAME.fullmatch(hub_name):
        raise VividError(f"open_clip:{name}: no such folder")
    problem: Exception = OSError()
    for file in wanted:
        try:
            config = Path(hf_hub_download(hub_name, CONFIG))
            return config, Path(hf_hub_download(hub_name, file)) if file else None
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
