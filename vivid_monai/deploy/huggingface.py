"""Export a classifier as a Hugging Face folder, which transformers loads as one of its own models, without our code."""

import json
import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, Dinov2Config, PreTrainedConfig, ViTConfig

from vivid_monai.deploy.export import check_same, describe, for_export
from vivid_monai.deploy.readme import render
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.vit import ViT
from vivid_monai.networks.weights import DINOV2, TRANSFORMERS, rename_vit_weights

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
_BLACK = 2**-16
_HEAD = "ForImageClassification"


def export_huggingface(
    classifier: Classifier, folder: str | PathLike, *, preprocess: Preprocess, fields: Sequence[str]
) -> Path:
    """Write a folder as ``save_pretrained`` does, whole or not at all.

    ``AutoModel``, ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load it, without network or code of
    ours. What pools by "cls" becomes a ``ViTForImageClassification``; that architecture knows no other pooling, so
    "mean" and "cls+mean" become a ``Dinov2ForImageClassification``, whose head sees both (a "mean" head has zeros for
    the CLS token) and whose layer scales are 1. The image processor resizes in 8 bits per direction where ours rounds
    once: single pixels differ by one grey level of 255. The folder's README.md tells how to get the exact input.

    Args:
        folder: to write; it must not be there yet, or be empty.

    Raises:
        VividError: preprocessing or fields of another classifier, preprocessing for which there is no image processor,
            a folder that holds files or cannot be written, logits that differ from PyTorch's by over 1e-4.
    """
    folder = Path(folder)
    description = describe(classifier, preprocess, fields)
    processor = _processor(preprocess)
    network = for_export(classifier)
    config = _config(network, fields)
    architecture = type(config).__name__.removesuffix("Config") + _HEAD
    readme = render("huggingface.md.j2", **description, p=preprocess, architecture=architecture)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise VividError(f"{folder}: holds files already; name a folder that is not there yet")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as outer:
            part = Path(outer) / folder.name  # a temporary folder is private; this one has any new folder's rights
            part.mkdir()
            config.save_pretrained(part)
            (part / "model.safetensors").write_bytes(save(_weights(network), metadata={"format": "pt"}))
            (part / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
            (part / "README.md").write_text(readme, encoding="utf-8")
            AutoImageProcessor.from_pretrained(part, local_files_only=True)
            model = AutoModelForImageClassification.from_pretrained(part, local_files_only=True).eval()
            check_same(
                folder,
                network,
                lambda images: (model(images).logits, model.base_model(images).last_hidden_state),
                lambda images: (network(images), network.encoder(images)),
            )
            part.replace(folder)
    except OSError as error:
        raise VividError(f"{folder}: cannot be written: {error}") from error
    return folder


def _config(network: Classifier, fields: Sequence[str]) -> PreTrainedConfig:
    vit, given = network.encoder, network.encoder.config
    if not isinstance(vit, ViT) or given.get("spatial_dims") == 3 or "stem" in given:
        raise VividError(f"{vit.architecture}: is no architecture of transformers; export ONNX or TorchScript")
    options: dict[str, Any] = {
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": vit.heads,
        "layer_norm_eps": given["norm_eps"],
        "hidden_act": "gelu",
        "image_size": given["img_size"][0],
        "patch_size": given["patch_size"],
        "num_channels": given["in_channels"],
        "id2label": dict(enumerate(fields)),
        "label2id": {field: i for i, field in enumerate(fields)},
        "problem_type": "multi_label_classification",
        "dtype": "float32",
    }
    if network.pool == "cls":
        return ViTConfig(intermediate_size=4 * vit.embed_dim, architectures=["ViT" + _HEAD], **options)
    return Dinov2Config(mlp_ratio=4, use_mask_token=False, architectures=["Dinov2" + _HEAD], **options)


def _weights(network: Classifier) -> dict[str, Tensor]:
    head = {"classifier.weight": network.head.weight, "classifier.bias": network.head.bias}
    if network.pool == "cls":
        tensors = rename_vit_weights(network.encoder, TRANSFORMERS)
        return {f"vit.{name}": tensor for name, tensor in tensors.items()} | head
    if network.pool == "mean":
        weight = network.head.weight
        head["classifier.weight"] = torch.cat([torch.zeros_like(weight), weight], dim=1)
    tensors = rename_vit_weights(network.encoder, DINOV2)
    for i in range(len(network.encoder.blocks)):
        for scale in ("layer_scale1", "layer_scale2"):
            tensors[f"encoder.layer.{i}.{scale}.lambda1"] = torch.ones(network.encoder.embed_dim)
    return {f"dinov2.{name}": tensor for name, tensor in tensors.items()} | head


def _processor(preprocess: Preprocess) -> dict[str, Any]:
    """The configuration of the image processor that comes nearest."""
    if preprocess.slices != 1:
        raise VividError("slices=3: image processors of transformers know no volumes; export another format")
    if preprocess.resize_to != preprocess.size and preprocess.size % 2:
        raise VividError(
            f"size={preprocess.size}: image processors cut an odd square out elsewhere; export another format"
        )
    square, to = {"height": preprocess.size, "width": preprocess.size}, preprocess.resize_to
    given = preprocess.to_dict()
    values: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": preprocess.channels == 3,
        "do_resize": True,
        "resample": _RESAMPLE[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": given["mean"],
        "image_std": given["std"],
    }
    if preprocess.resize == "pad":
        # Of all processors Janus' alone fits an image into a square as ours does. It fills up with the mean, though,
        # cut down to a whole number: black, where everything is done on a scale so small that the mean is under 1.
        return values | {
            "image_processor_type": "JanusImageProcessor",
            "size": square,
            "min_size": 1,
            "do_pad": True,
            "rescale_factor": _BLACK / 255,
            "image_mean": [_BLACK * one for one in given["mean"]],
            "image_std": [_BLACK * one for one in given["std"]],
        }
    size = {"shortest_edge": to} if preprocess.resize == "crop" else {"height": to, "width": to}
    return values | {
        "size": size,
        "do_center_crop": to != preprocess.size or preprocess.resize == "crop",
        "crop_size": square,
    }
