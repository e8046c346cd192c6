"""The classifier as a config of PyTorch's and MONAI's own modules: what a bundle holds needs no code of ours.

MONAI's ``ViT`` returns a tuple, has no epsilon to set and knows one pooling, so the network is put together from parts.
``torch.nn.TransformerEncoderLayer`` is the ViT's pre-norm block; the CLS token, for which there is no module, is an
empty patch in front of the others:

    image → Unfold: a column of pixels per patch → an empty column in front → patch embedding with positions.

The empty column embeds to the bias of the patch embedding, so its position is the CLS token less that bias. A pooling
window of one token, moved on by all of them, picks the CLS token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from vivid_monai.errors import VividError
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.vit import PRESETS, ViT

Config = dict[str, Any]

_PATCHES, _BLOCKS = "3", "4"  # places in the sequence of layers; the head is the last
_BLOCK = {  # our names of a block's parts → PyTorch's
    "attn.qkv": "self_attn.in_proj_",
    "attn.out_proj": "self_attn.out_proj.",
    "norm1": "norm1.",
    "norm2": "norm2.",
    "mlp.linear1": "linear1.",
    "mlp.linear2": "linear2.",
}


def network_layers(config: Mapping[str, Any], *, n_fields: int, pool: str) -> list[Config]:
    """The layers in MONAI's config language: images (B, C, H, W) → features (B, D) → logits (B, n_fields).

    The last layer is the head; what comes out of those before it are the pooled features.

    Args:
        config: ``ViT.config`` of the encoder.
        n_fields: number of logits.
        pool: "cls" or "mean".

    Raises:
        VividError: another pooling.
    """
    shape, patch = PRESETS[config["preset"]], config["patch_size"]
    pixels = config["in_channels"] * patch**2
    height, width = config["img_size"]
    n_patches = (height // patch) * (width // patch)
    return [
        _layer("torch.nn.Unfold", kernel_size=patch, stride=patch),
        _layer("torch.nn.ConstantPad1d", padding=[1, 0], value=0.0),
        _layer("torch.nn.Unflatten", dim=1, unflattened_size=[1, pixels]),
        _layer(
            "monai.networks.blocks.PatchEmbeddingBlock",
            in_channels=1,
            img_size=[pixels, n_patches + 1],
            patch_size=[pixels, 1],
            hidden_size=shape.width,
            num_heads=shape.heads,
            spatial_dims=2,
        ),
        _layer(
            "torch.nn.TransformerEncoder",
            encoder_layer=_layer(
                "torch.nn.TransformerEncoderLayer",
                d_model=shape.width,
                nhead=shape.heads,
                dim_feedforward=4 * shape.width,
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=config["norm_eps"],
                batch_first=True,
                norm_first=True,
            ),
            num_layers=shape.depth,
            norm=_layer("torch.nn.LayerNorm", normalized_shape=shape.width, eps=config["norm_eps"]),
            enable_nested_tensor=False,
        ),
        *_pooling(pool, n_patches),
        _layer("torch.nn.Flatten"),
        _layer("torch.nn.Linear", in_features=shape.width, out_features=n_fields),
    ]


def build_network(layers: list[Config]) -> nn.Sequential:
    """The network of :func:`network_layers`, in evaluation mode, its weights drawn anew."""
    parser = ConfigParser({"layers": layers})
    return nn.Sequential(*parser.get_parsed_content("layers")).eval()


def to_network(classifier: Classifier) -> nn.Sequential:
    """The same function as a classifier computes in evaluation mode, as a network of :func:`network_layers`.

    Raises:
        VividError: a pooling for which there is no such network.
    """
    n_fields = classifier.head.out_features
    layers = network_layers(classifier.encoder.config, n_fields=n_fields, pool=classifier.pool)
    network = build_network(layers)
    network.load_state_dict(_to_names(classifier, head=str(len(layers) - 1)))
    return network


def from_network(state: Mapping[str, Tensor], *, config: Mapping[str, Any], pool: str) -> Classifier:
    """The classifier that :func:`to_network` made such weights of, in evaluation mode.

    Args:
        state: ``state_dict`` of the network.
        config: ``ViT.config`` of its encoder.

    Raises:
        VividError: weights of another network.
    """
    try:
        head = str(max(int(name.split(".")[0]) for name in state))
        weight, bias = state[f"{_PATCHES}.patch_embeddings.weight"], state[f"{_PATCHES}.patch_embeddings.bias"]
        positions = state[f"{_PATCHES}.position_embeddings"]
        classifier = Classifier(ViT(**config), len(state[f"{head}.bias"]), pool=pool)
        ours = {
            "encoder.patch_embedding.patch_embeddings.weight": weight.reshape(
                weight.shape[0], config["in_channels"], config["patch_size"], config["patch_size"]
            ),
            "encoder.patch_embedding.patch_embeddings.bias": bias,
            "encoder.cls_token": positions[:, :1] + bias,
            "encoder.patch_embedding.position_embeddings": positions[:, 1:],
        }
        ours |= {mine: state[theirs] for mine, theirs in _renamed(len(classifier.encoder.blocks), head).items()}
        classifier.load_state_dict(ours)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise VividError(f"the weights are not those of this network: {error}") from error
    return classifier.eval()


def _to_names(classifier: Classifier, *, head: str) -> dict[str, Tensor]:
    state = {name: tensor.detach().cpu() for name, tensor in classifier.state_dict().items()}
    weight = state["encoder.patch_embedding.patch_embeddings.weight"]
    bias = state["encoder.patch_embedding.patch_embeddings.bias"]
    positions = state["encoder.patch_embedding.position_embeddings"]
    theirs = {
        f"{_PATCHES}.patch_embeddings.weight": weight.reshape(weight.shape[0], 1, -1, 1),
        f"{_PATCHES}.patch_embeddings.bias": bias,
        f"{_PATCHES}.position_embeddings": torch.cat((state["encoder.cls_token"] - bias, positions), 1),
    }
    return theirs | {name: state[mine] for mine, name in _renamed(len(classifier.encoder.blocks), head).items()}


def _renamed(depth: int, head: str) -> dict[str, str]:
    names = {}
    for kind in ("weight", "bias"):
        for i in range(depth):
            for mine, theirs in _BLOCK.items():
                names[f"encoder.blocks.{i}.{mine}.{kind}"] = f"{_BLOCKS}.layers.{i}.{theirs}{kind}"
        names[f"encoder.norm.{kind}"] = f"{_BLOCKS}.norm.{kind}"
        names[f"head.{kind}"] = f"{head}.{kind}"
    return names


def _pooling(pool: str, n_patches: int) -> list[Config]:
    if pool == "cls":
        return [_layer("torch.nn.AvgPool2d", kernel_size=[1, 1], stride=[n_patches + 1, 1])]
    if pool == "mean":  # a padding of -1 cuts the CLS token off
        return [
            _layer("torch.nn.ZeroPad2d", padding=[0, 0, -1, 0]),
            _layer("torch.nn.AvgPool2d", kernel_size=[n_patches, 1]),
        ]
    raise VividError(f"the network of a bundle pools by cls or mean, not by {pool!r}")


def _layer(target: str, **arguments: Any) -> Config:
    return {"_target_": target, **arguments}
