"""TorchXRayVision's chest X-ray networks as encoders (Cohen et al. 2022, arXiv:2111.00595)."""

from pathlib import Path
from typing import Any

from vivid_monai.errors import VividError, first_line
from vivid_monai.evaluation.encoders.base import VividEncoder, library_encoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.checkpoint import read_checkpoint
from vivid_monai.networks.library import import_library

HEAD = ("classifier", "fc", "op_threshs")


def load_torchxrayvision(name: str, *, pool: str | None = None, pretrained: bool = True) -> VividEncoder:
    """The encoder of published weights: "pooled" is the average of the last map, whose cells are the tokens.

    Args:
        name: ``NAME=FILE``: of the weights, such as ``densenet121-res224-all``, and a file with their state dict. For
            ``resnet50-res512-all`` the file may be left out: it is looked for where TorchXRayVision keeps it, and
            downloaded by it. The DenseNets are published as pickled networks, which could run code and are not read.
        pool: "pooled" or None, or "mean", which is the same up to rounding.
        pretrained: False: fresh weights; the file is not read.

    Raises:
        VividError: TorchXRayVision is not installed; no such weights; they cannot be had, or are no plain tensors;
            tensors are missing.
    """
    xrv = import_library("torchxrayvision", "torchxrayvision")
    source, (name, _, file) = f"torchxrayvision:{name}", name.partition("=")
    known = xrv.models.model_urls
    names = [n for n in known if n.startswith(("densenet121-", "resnet50-"))]
    if name not in names:
        raise VividError(f"{source}: no such weights; choose one of {', '.join(names)}")
    tensors = read_checkpoint(file or _published(xrv, name, source)).tensors if pretrained else None
    if tensors is not None:  # without the classifier, and the operating points of it
        tensors = {key: one for key, one in tensors.items() if key.partition(".")[0] not in HEAD}
    # Its values lie in [-1024, 1024]; here that is mean 1/2 and std 1/2048 of values in [0, 1].
    size = known[name]["input_resolution"]
    preprocess = Preprocess(size=size, channels=1, mean=0.5, std=1 / 2048, resize="crop")
    model, misfit = {"architecture": name.split("-")[0]}, f"{source}: the file does not fit {name}"
    return library_encoder(
        "torchxrayvision", model, preprocess, pool=pool, source=source, tensors=tensors, misfit=misfit
    )


def _published(xrv: Any, name: str, source: str) -> Path:
    if not name.startswith("resnet"):
        convert = (
            "import torch, torchxrayvision as xrv; "
            f"torch.save(xrv.models.DenseNet(weights='{name}').state_dict(), '{name}.pt')"
        )
        raise VividError(
            f"{source}: is published as a pickled network, which could run code and is not read. Where you trust it, "
            f'write its tensors once with python -c "{convert}", then name the file: {source}={name}.pt'
        )
    try:
        return Path(xrv.models.get_weights(name))
    except Exception as error:  # no connection
        raise VividError(
            f"{source}: cannot be downloaded ({first_line(error)}); fetch {xrv.models.model_urls[name]['weights_url']} "
            f"where there is a connection and name the file: {source}=FILE"
        ) from error
