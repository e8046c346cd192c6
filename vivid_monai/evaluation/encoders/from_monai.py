"""MONAI's networks of convolutions as encoders: a plain state dict, or fresh weights."""

from typing import Any

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import VividEncoder, library_encoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.checkpoint import read_checkpoint
from vivid_monai.networks.library import MONAI_NETWORKS

FIRST = ("conv1.weight", "features.conv0.weight")
HEAD = ("fc.", "class_layers.out.")


def load_monai(name: str, *, pool: str | None = None, pretrained: bool = True) -> VividEncoder:
    """The encoder of one of MONAI's DenseNets and ResNets of images, with MONAI's own defaults.

    A state dict says nothing of preprocessing: images are of 224 pixels, values of mean 0.5 and deviation 0.25 in each
    of the channels that the first convolution takes.

    Args:
        name: ``NAME=FILE``, such as ``DenseNet121=model.pt``; the file may be left out where it is not read.
        pool: "pooled" or None, the average of the last map; or "mean" of its cells, the same up to rounding.
        pretrained: False: fresh weights, for one channel; the file is not read.

    Raises:
        VividError: no such network, no file, or its tensors are not those of the network.
    """
    source, (name, _, file) = f"monai:{name}", name.partition("=")
    if name.lower() not in MONAI_NETWORKS:
        raise VividError(f"{source}: no such network; choose one of {', '.join(MONAI_NETWORKS)}")
    model: dict[str, Any] = {"architecture": name.lower(), "in_channels": 1}
    tensors = None
    if pretrained:
        if not file:
            raise VividError(f"{source}: has no weights of its own; name a file, {source}=FILE, or untrained:{source}")
        tensors = read_checkpoint(file).tensors
        first = next((tensors[key] for key in FIRST if key in tensors), None)
        if first is not None:
            model["in_channels"] = first.shape[1]
            if first.ndim != 4 or first.shape[1] not in (1, 3):
                raise VividError(
                    f"{source}: its first convolution has shape {tuple(first.shape)}; only networks of images, of 1 or "
                    "3 channels, are read"
                )
        if model["architecture"].startswith("resnet"):
            model["bias_downsample"] = any(key.endswith("downsample.0.bias") for key in tensors)
        tensors = {key: one for key, one in tensors.items() if not key.startswith(HEAD)}
    preprocess = Preprocess(size=224, channels=model["in_channels"], mean=0.5, std=0.25)
    misfit = f"{source}: the file does not fit {name}"
    return library_encoder("monai", model, preprocess, pool=pool, source=source, tensors=tensors, misfit=misfit)
