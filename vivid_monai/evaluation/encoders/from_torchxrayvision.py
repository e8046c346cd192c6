"""TorchXRayVision's chest X-ray networks as encoders (Cohen et al. 2022, arXiv:2111.00595)."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vivid_monai.errors import VividError, first_line
from vivid_monai.evaluation.encoders.base import Encoder, library, load_strictly, structure
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.checkpoint import read_checkpoint
from vivid_monai.networks.pooling import choose_pool


class TorchXRayVisionEncoder(Encoder):
    """A DenseNet-121 or ResNet-50 of TorchXRayVision without its classifier: the averaged last map."""

    kind = "torchxrayvision"

    def pooled(self, images: Tensor) -> Tensor:
        return getattr(self.network, "features2", self.network)(images)  # torchvision's ResNet ends where its fc was


def load_torchxrayvision(name: str, *, pool: str | None = None) -> TorchXRayVisionEncoder:
    """The encoder of published weights.

    Args:
        name: ``NAME=FILE``: of the weights, such as ``densenet121-res224-all``, and a file with their state dict. For
            ``resnet50-res512-all`` the file may be left out: it is looked for where TorchXRayVision keeps it, and
            downloaded by it. The DenseNets are published as pickled networks, which could run code and are not read.
        pool: "pooled" or None: a network of convolutions has no tokens.

    Raises:
        VividError: TorchXRayVision is not installed; no such weights; they cannot be had, or are no plain tensors;
            tensors are missing.
    """
    pool = choose_pool(pool, cls=False, patches=False)
    xrv = library("torchxrayvision", "torchxrayvision")
    source, (name, _, file) = f"torchxrayvision:{name}", name.partition("=")
    known = xrv.models.model_urls
    names = [n for n in known if n.startswith(("densenet121-", "resnet50-"))]
    if name not in names:
        raise VividError(f"{source}: no such weights; choose one of {', '.join(names)}")
    tensors = read_checkpoint(file or _published(xrv, name, source)).tensors
    classes = len(known[name]["labels"])
    if name.startswith("resnet"):
        network = library("torchvision", "torchvision").models.resnet50(num_classes=classes)
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    else:
        network = xrv.models.DenseNet(num_classes=classes)
    tensors.pop("op_threshs", None)  # the operating points are of the classifier
    load_strictly(network, tensors, f"{source}: the file does not fit {name}")
    for head in ("classifier", "fc"):
        if hasattr(network, head):
            setattr(network, head, nn.Identity())
    # Its values lie in [-1024, 1024]; here that is mean 1/2 and std 1/2048 of values in [0, 1].
    size = known[name]["input_resolution"]
    preprocess = Preprocess(size=size, channels=1, mean=0.5, std=1 / 2048, resize="crop")
    settings, architecture = structure(network), name.split("-")[0]
    return TorchXRayVisionEncoder(
        network, preprocess, pool=pool, source=source, settings=settings, architecture=architecture
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
