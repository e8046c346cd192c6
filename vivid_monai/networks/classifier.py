"""A backbone, the read-out of its tokens and a linear head: the `network_def` of the bundle."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivid_monai.errors import VividError, cut
from vivid_monai.networks.densenet import DenseNet
from vivid_monai.networks.pooling import choose_pool, pool_tokens, pooled_width
from vivid_monai.networks.resnet import ResNet
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT

BACKBONES: dict[str, type] = {"vit": ViT, "resnet": ResNet, "densenet": DenseNet}
"""Kind, as `save_module` stores it → class. Each turns images (B, C, *spatial) into tokens (B, prefix + prod(grid), D)
and has `embed_dim` (D), `grid` (tokens along each axis), `prefix` (tokens before the grid's), `image_shape`
(C, *spatial), `architecture` (its name) and `config` (keyword arguments that build it again, JSON)."""


class Classifier(nn.Module):
    """A backbone (`encoder`) and a linear `head` on its features, pooled by `pool`.

    Args:
        encoder: one of `BACKBONES`.
        num_classes: number of logits.
        pool: "spd" (the embeddings of `spd`, side by side), "cls" (the CLS token), "mean" (mean of the grid's tokens),
            "cls+mean" (both, side by side) or "pooled" (of a backbone whose one token is its own pooled output); None
            is the first of "spd", "cls", "pooled" and "mean" that there is.
        spd: as wide as the backbone; a part of the classifier where it is pooled by.

    Raises:
        VividError: an argument is out of its range, or there is no SPD or CLS token to pool by.
    """

    def __init__(self, encoder: Any, num_classes: int, *, pool: str | None = "cls", spd: SPD | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise VividError(f"num_classes={num_classes} must be positive")
        self.encoder = encoder
        pooled = getattr(encoder, "output", "tokens") == "pooled"
        self.pool = choose_pool(pool, cls=encoder.prefix > 0, patches=True, pooled=pooled, spd=spd is not None)
        self.spd = spd if self.pool == "spd" else None
        self.head = nn.Linear(pooled_width(encoder.embed_dim, self.pool, spd), num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features of images (B, C, *spatial): (B, D); for "cls+mean" (B, 2 D), for "spd" (B, spd.out_dim)."""
        tokens = self.encoder(x)
        if self.spd is not None:
            return self.spd.pool(tokens)
        return pool_tokens(tokens, self.pool, prefix=self.encoder.prefix)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, *spatial)."""
        return self.head(self.features(x))


def load_weights(network: Classifier, file: str | Path, *, new_head: bool = False) -> None:
    """Give a classifier the weights in a file.

    Args:
        file: of ``torch.save``, its state dict; no code in it is run.
        new_head: a head of another width stays as it is, to be learned.

    Raises:
        VividError: it cannot be read, or the first tensor that is missing, left over or of another shape.
    """
    try:
        given = dict(torch.load(file, map_location="cpu", weights_only=True))
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    except Exception as error:  # PyTorch raises all kinds
        raise VividError(
            f"{file}: holds no plain tensors ({type(error).__name__}); give another --ckpt_path"
        ) from error
    own = network.state_dict()
    for name in sorted(own.keys() | shapes.keys()):
        has, needs = shapes.get(name, "missing"), tuple(own[name].shape) if name in own else "unknown"
        if has == needs:
            continue
        head = name in ("head.weight", "head.bias")
        if not head or not new_head:
            way = (
                "name the findings that it was trained on (--fields)" if head else "take the bundle's own (--ckpt_path)"
            )
            raise VividError(f"{file}: {cut(name, 80)} is {has}, that of the network is {needs}: {way}")
        given[name] = own[name]
    network.load_state_dict(given)
