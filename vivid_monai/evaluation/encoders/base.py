"""What every image encoder is to an evaluation: images in, features out, with the preprocessing its weights need."""

import hashlib
import importlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vivid_monai.data.preprocess import Preprocess
from vivid_monai.errors import VividError


class Encoder(nn.Module):
    """A frozen network with its preprocessing. Made by :func:`~vivid_monai.evaluation.encoders.load_encoder`.

    Attributes:
        kind: the library the network comes from.
        architecture: the network's name in that library.
        preprocess: how images become its input; belongs to the weights.
        pool: what the features are: "cls", "mean", "cls+mean" or "pooled" (the network's own pooled output).
        dim: width D of the features.
        source: where the weights came from, as the user said it.
    """

    kind: str
    architecture: str
    network: Any

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, *, pool: str, source: str, settings: Mapping[str, Any]
    ) -> None:
        """
        Args:
            network: an :class:`~torch.nn.Module` that :meth:`forward` calls; frozen and set to evaluation mode.
            preprocess: see above.
            pool: see above.
            source: see above.
            settings: what the tensors do not tell of the network (heads, epsilons, activations), as JSON.

        Raises:
            VividError: the network cannot be run on an image of the preprocessing's size.
        """
        super().__init__()
        self.network = network.requires_grad_(False)
        self.preprocess, self.pool, self.source = preprocess, pool, source
        self.settings = json.loads(json.dumps(settings, sort_keys=True, default=str))
        self.eval()
        self.dim = self._measure()

    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: (B, C, H, W) float32, as :attr:`preprocess` makes them.

        Returns:
            (B, D) float32.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What a result must say of its encoder, as JSON."""
        return {
            "kind": self.kind,
            "source": self.source,
            "architecture": self.architecture,
            "pool": self.pool,
            "dim": self.dim,
            "n_parameters": sum(parameter.numel() for parameter in self.parameters()),
            "preprocess": self.preprocess.to_dict(),
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """SHA-256 of all that decides the features: kind, settings, pooling, preprocessing, every tensor.

        Where the weights came from is no part of it: the same network from another folder has the same fingerprint.
        """
        said = {
            "kind": self.kind,
            "architecture": self.architecture,
            "settings": self.settings,
            "pool": self.pool,
            "preprocess": self.preprocess.to_dict(),
        }
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            value = tensor.detach().cpu().contiguous()
            digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _measure(self) -> int:
        size, channels = self.preprocess.size, max(self.preprocess.channels, self.preprocess.slices)
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, channels, size, size))
        except Exception as error:  # the networks of other libraries raise whatever they like on a size they lack
            raise VividError(
                f"{self.source}: the network ({self.architecture}) does not take the images that its preprocessing "
                f"makes, {channels} x {size} x {size}: {first_line(error)}"
            ) from error
        return int(features.shape[1])


def structure(network: nn.Module) -> dict[str, Any]:
    """Settings of a network whose library keeps no complete configuration: its modules, and the heads in them."""
    heads = {name: module.num_heads for name, module in network.named_modules() if hasattr(module, "num_heads")}
    return {"modules": str(network), "heads": heads}


def library(name: str, package: str) -> ModuleType:
    """An optional library.

    Raises:
        VividError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise VividError(f"{name} lacks the package {error.name}: pip install {error.name}") from error
        raise VividError(f"{name} is not installed: pip install {package}") from error
    except Exception as error:  # a build of torchvision that does not fit PyTorch's raises RuntimeError
        raise VividError(f"{name} cannot be imported: {first_line(error)}; mend it: pip install {package}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
