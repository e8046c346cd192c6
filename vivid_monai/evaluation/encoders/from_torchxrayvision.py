"""TorchXRayVision's chest X-ray networks as encoders (Cohen et al. 2022, arXiv:2111.00595)."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivid_monai.data.preprocess import Preprocess
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import Encoder, first_line, library, structure
from vivid_monai.evaluation.encoders.pooling import choose_pool

# The published DenseNets are whole pickled modules. These classes, and no others, may be made of what such a file says.
LAYERS = (nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Linear)
OWN = ("DenseNet", "_DenseBlock", "_DenseLayer", "_Transition")


class TorchXRayVisionEncoder(Encoder):
    """A DenseNet-121 or ResNet-50 of TorchXRayVision without its classifier: the averaged last map.

    Its values lie in [−1024, 1024]; here that is mean 1/2 and std 1/2048 of values in [0, 1].
    """

    kind = "torchxrayvision"

    def __init__(self, network: nn.Module, name: str, size: int) -> None:
        self.architecture = name.split("-")[0]
        preprocess = Preprocess(size=size, channels=1, mean=0.5, std=1 / 2048, resize="crop")
        super().__init__(
            network, preprocess, pool="pooled", source=f"torchxrayvision:{name}", settings=structure(network)
        )

    def forward(self, images: Tensor) -> Tensor:
        network: Any = self.network
        return (network.features2(images) if hasattr(network, "features2") else network(images)).float()


def load_torchxrayvision(name: str, *, pool: str = "cls") -> TorchXRayVisionEncoder:
    """The encoder of published weights, such as ``densenet121-res224-all`` or ``resnet50-res512-all``.

    The file is looked for where TorchXRayVision keeps it (``~/.torchxrayvision/models_data``), and downloaded by it
    where it is not. Of the file only tensors are used, and no code of it is run.

    Args:
        name: of the weights.
        pool: one of the known ones; a network of convolutions has no tokens, so that it is always "pooled".

    Raises:
        VividError: TorchXRayVision is not installed; no such weights; they cannot be had; the file holds anything but
            the network; tensors are missing.
    """
    choose_pool(pool, cls=False, patches=False)
    xrv = library("torchxrayvision", "torchxrayvision")
    known = xrv.models.model_urls
    names = [n for n in known if n.startswith(("densenet121-", "resnet50-"))]
    if name not in names:
        raise VividError(f"torchxrayvision:{name}: no such weights; choose one of {', '.join(names)}")
    url, size, classes = known[name]["weights_url"], known[name]["input_resolution"], len(known[name]["labels"])
    try:
        file = Path(xrv.models.get_weights(name))
    except Exception as error:  # no connection
        raise VividError(
            f"torchxrayvision:{name}: cannot be downloaded ({first_line(error)}); fetch {url} where there is a "
            f"connection and put it into {xrv.utils.get_cache_dir()}"
        ) from error
    network = _densenet(xrv, classes) if name.startswith("densenet") else _resnet(classes)
    tensors = _tensors(xrv, file)
    try:
        network.load_state_dict({key: tensor.float() for key, tensor in tensors.items() if key != "op_threshs"})
    except RuntimeError as error:
        raise VividError(
            f"torchxrayvision:{name}: {file} does not fit: {str(error).splitlines()[1].strip()}"
        ) from error
    for head in ("classifier", "fc"):
        if hasattr(network, head):
            setattr(network, head, nn.Identity())
    return TorchXRayVisionEncoder(network, name, size)


def _densenet(xrv: Any, classes: int) -> nn.Module:
    return xrv.models.DenseNet(num_classes=classes)


def _resnet(classes: int) -> nn.Module:
    network = library("torchvision", "torchvision").models.resnet50(num_classes=classes)
    network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network


def _tensors(xrv: Any, file: Path) -> dict[str, Tensor]:
    classes: list[Any] = [*LAYERS, *(getattr(xrv.models, name) for name in OWN), set]
    try:
        with torch.serialization.safe_globals(classes):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise VividError(
            f"{file}: holds anything but TorchXRayVision's network, or is broken; it is not run: {first_line(error)}"
        ) from error
    if isinstance(content, nn.Module):
        for module in content.modules():  # files of old PyTorch versions lack it
            module.__dict__.setdefault("_non_persistent_buffers_set", set())
        content = content.state_dict()
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise VividError(f"{file}: holds a {type(content).__name__}, not named tensors")
    return dict(content)
