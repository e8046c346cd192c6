"""Export a classifier as TorchScript, ONNX or Hugging Face folder, with its preprocessing, checked against PyTorch."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import onnx
import torch
from monai.data.torchscript_utils import load_net_with_metadata, save_net_with_metadata
from safetensors.torch import save
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, Dinov2Config, PreTrainedConfig, ViTConfig

from vivid_monai.deploy import modeling_vivid
from vivid_monai.deploy.onnx import FORMAT, INPUT, OUTPUTS, OnnxClassifier
from vivid_monai.deploy.readme import render
from vivid_monai.deploy.scripts import module_files
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.logs import quiet
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.library import LibraryBackbone
from vivid_monai.networks.stem import ConvStem
from vivid_monai.networks.vit import ViT
from vivid_monai.networks.weights import DINOV2, PATCHES, TRANSFORMERS, rename_vit_weights
from vivid_monai.storage.files import part_folder, whole_file

TOLERANCE = 1e-4
BATCHES = (1, 2, 5)
OPSET = 20
"""Of ONNX: the first with Gelu as one operator, which runtimes compute in one pass; under it all is a tenth slower."""

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
_BLACK = 2**-16
_HEAD = "ForImageClassification"
MODELING = "deploy/modeling_vivid.py"
"""What a Hugging Face folder needs of this package where transformers lacks a part of the network."""
PROCESSING = "deploy/processing_vivid.py"
"""What it needs for the exact input, and for a pipeline."""


def describe(classifier: Classifier, preprocess: Preprocess, fields: Sequence[str]) -> dict[str, Any]:
    """Format, preprocessing, fields and versions of an exported classifier; JSON-serialisable.

    Raises:
        VividError: they do not belong to this classifier.
    """
    logits, shape = classifier.head.out_features, classifier.encoder.image_shape
    if len(fields) != logits or len(set(fields)) != len(fields):
        raise VividError(f"{len(fields)} fields ({len(set(fields))} different ones) for a classifier of {logits}")
    if shape != preprocess.shape:
        raise VividError(
            f"the preprocessing makes images {preprocess.shape}, the classifier is for {shape}: they do not belong"
        )
    return {
        "format": FORMAT,
        "preprocess": preprocess.to_dict(),
        "fields": list(fields),
        "versions": {name: version(name) for name in ("vivid-monai", "torch", "monai")},
    }


def for_export(classifier: Classifier) -> Classifier:
    """A copy in evaluation mode, in float32, on the CPU, without gradients; the original stays as it is."""
    return deepcopy(classifier).float().cpu().eval().requires_grad_(False)


def check_same(
    path: str | PathLike,
    classifier: Classifier,
    exported: Callable[[Tensor], tuple[Tensor, ...]],
    expected: Callable[[Tensor], tuple[Tensor, ...]],
) -> None:
    """Compare an exported file with PyTorch on random images, in batches of 1, 2 and 5.

    MONAI's ``convert_to_onnx(verify=True)`` compares one batch, of the size that was exported, by an absolute
    tolerance. `exported` and `expected` make of images (B, C, H, W) tensors that must be equal one by one.

    Raises:
        VividError: a shape that differs, or a number, by over :data:`TOLERANCE`, as a part of the largest expected one
            where that is over 1: the logits of noise may be in the dozens.
    """
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        images = torch.randn(batch, *classifier.encoder.image_shape, generator=generator)
        with torch.inference_mode():
            pairs = list(zip(exported(images), expected(images), strict=True))
        for got, wanted in pairs:
            difference = torch.inf
            if got.shape == wanted.shape:
                difference = ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()
            if not difference <= TOLERANCE:
                raise VividError(
                    f"{path}: a batch of {batch} differs from PyTorch's by {difference:.3g}, allowed is {TOLERANCE:g}; "
                    "nothing was written"
                )


def export_torchscript(
    classifier: Classifier, path: str | PathLike, *, preprocess: Preprocess, fields: Sequence[str]
) -> Path:
    """Write a classifier as TorchScript: images float32 (B, C, H, W), any B → logits (B, F).

    ``torch.jit.load`` reads it; MONAI's ``load_net_with_metadata`` gives its preprocessing, fields and versions too.
    The file is read back and compared with PyTorch before it takes its place.

    Raises:
        VividError: preprocessing or fields of another classifier, another library's network, a file that cannot be
            written, logits that differ.
    """
    path, metadata = Path(path), describe(classifier, preprocess, fields)
    network = for_export(classifier)
    if isinstance(network.encoder, LibraryBackbone):
        name = f"{network.encoder.architecture} of {network.encoder.library}"
        raise VividError(f"{path}: {name} cannot be written as TorchScript; give --to onnx")
    with whole_file(path) as part:
        save_net_with_metadata(torch.jit.script(network), str(part), include_config_vals=False, meta_values=metadata)
        loaded, _, _ = load_net_with_metadata(str(part))
        check_same(path, network, lambda images: (loaded(images),), lambda images: (network(images),))
    return path


def export_onnx(classifier: Classifier, path: str | PathLike, *, preprocess: Preprocess, fields: Sequence[str]) -> Path:
    """Write a classifier as ONNX, for any runtime.

    Input "image" float32 (batch, C, H, W), any batch; outputs "pred", logits (batch, F), and "features", pooled
    features (batch, D). Preprocessing, fields and versions are JSON in the file's metadata. The file is read back as
    an :class:`~vivid_monai.deploy.onnx.OnnxClassifier` and compared with PyTorch before it takes its place.

    Raises:
        VividError: preprocessing or fields of another classifier, a file that cannot be written, outputs that differ.
    """
    path, metadata = Path(path), describe(classifier, preprocess, fields)
    network = _WithFeatures(for_export(classifier))
    model = _onnx_model(network)
    write_metadata(model, metadata)
    with whole_file(path) as part:
        part.write_bytes(model.SerializeToString())
        runtime = OnnxClassifier(part, threads=torch.get_num_threads())
        check_same(path, network.classifier, lambda images: tuple(map(torch.from_numpy, runtime(images))), network)
    return path


def write_metadata(model: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Set the metadata of an ONNX model, each value as JSON; other metadata, of nodes too, are removed.

    The exporter notes for every node which lines of which files it comes from: paths of the machine that exported.
    """
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    # "location" is what names another file as the place of weights; files with this word are refused.
    texts = {name: json.dumps(value).replace("location", r"\u006cocation") for name, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)


class _WithFeatures(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.features(image)
        return self.classifier.head(features), features


def _onnx_model(network: _WithFeatures) -> onnx.ModelProto:
    with quiet():  # the exporter reports its progress and which other packages it misses
        program: Any = torch.onnx.export(
            network,
            (torch.zeros(2, *network.classifier.encoder.image_shape),),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            verbose=False,
        )
    return program.model_proto


def export_huggingface(
    classifier: Classifier, folder: str | PathLike, *, preprocess: Preprocess, fields: Sequence[str]
) -> Path:
    """Write a folder as ``save_pretrained`` does, whole or not at all.

    ``AutoModel``, ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load it, without network and, where
    patches are linear and the pool is not "spd", without code of ours. What pools by "cls" becomes a
    ``ViTForImageClassification``; that architecture knows no other pooling, so "mean" and "cls+mean" become a
    ``Dinov2ForImageClassification``, whose head sees both (a "mean" head has zeros for the CLS token) and whose layer
    scales are 1. The rest becomes a class of :mod:`~vivid_monai.deploy.modeling_vivid`, which lies in the folder and
    runs with ``trust_remote_code=True`` only: a ``ViTForImageClassificationBySPD``, whose ViT ``AutoModel`` loads
    without it, or, with a convolutional stem and any pool, a ``ConvStemViTForImageClassification``, of which nothing is
    loaded without it.

    With ``trust_remote_code=True`` the image processor and ``pipeline("image-classification")`` are those of
    :mod:`~vivid_monai.deploy.processing_vivid`, and the input is exact, of grey, RGB and 16-bit images. Without it
    the nearest image processor of transformers is loaded, which takes grey images of 8 bits and resizes in 8 bits per
    direction: single pixels differ by one grey level of 255. The folder's README.md tells how that can be exact too.

    Raises:
        VividError: preprocessing or fields of another classifier, preprocessing for which there is no image processor,
            a folder that holds files or cannot be written, logits that differ.
    """
    folder = Path(folder)
    description = describe(classifier, preprocess, fields)
    processor = _processor(preprocess)
    network = for_export(classifier)
    config = _config(network, fields)
    (architecture,) = config.architectures
    code = Path(PROCESSING).stem
    processor |= {"auto_map": {"AutoImageProcessor": f"{code}.VividImageProcessor"}, "vivid": preprocess.to_dict()}
    pipeline = {"impl": f"{code}.VividImageClassificationPipeline", "pt": [f"AutoModel{_HEAD}"]}
    config.custom_pipelines = {"image-classification": pipeline}
    own = hasattr(config, "auto_map")
    readme = render(
        "huggingface.md.j2", **description, p=preprocess, architecture=architecture, own=own, pool=network.pool
    )
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise VividError(f"{folder}: holds files already; name a folder that is not there yet")
        with part_folder(folder) as part:
            config.save_pretrained(part)
            (part / "model.safetensors").write_bytes(save(_weights(network), metadata={"format": "pt"}))
            (part / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
            (part / "README.md").write_text(readme, encoding="utf-8")
            for name, text in module_files([PROCESSING, *([MODELING] if own else [])]).items():
                if name != "__init__.py":
                    (part / name).write_text(text, encoding="utf-8")
            AutoImageProcessor.from_pretrained(part, local_files_only=True)
            auto = getattr(modeling_vivid, architecture) if own else AutoModelForImageClassification
            model = auto.from_pretrained(part, local_files_only=True).eval()
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
    if not isinstance(vit, ViT) or given.get("spatial_dims") == 3:
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
    code, mlp = Path(MODELING).stem, {"intermediate_size": 4 * vit.embed_dim}
    if "stem" in given:
        kind = "ConvStemViT"
        classes = {"AutoConfig": "Config", "AutoModel": "Model", f"AutoModel{_HEAD}": _HEAD}
        options |= {"pool": network.pool, "spd": network.spd.config if network.spd else None}
        options["auto_map"] = {auto: f"{code}.{kind}{name}" for auto, name in classes.items()}
        return modeling_vivid.ConvStemViTConfig(architectures=[kind + _HEAD], **mlp, **options)
    if network.spd is not None:
        if network.spd.out_dim == vit.embed_dim:  # transformers' own classifier would take the head for its own
            raise VividError("an SPD of one query cannot be told from CLS by transformers; export ONNX or TorchScript")
        name = modeling_vivid.ViTForImageClassificationBySPD.__name__
        options |= {"spd": network.spd.config, "auto_map": {f"AutoModel{_HEAD}": f"{code}.{name}"}}
        return ViTConfig(architectures=[name], **mlp, **options)
    if network.pool == "cls":
        return ViTConfig(architectures=["ViT" + _HEAD], **mlp, **options)
    return Dinov2Config(mlp_ratio=4, use_mask_token=False, architectures=["Dinov2" + _HEAD], **options)


def _weights(network: Classifier) -> dict[str, Tensor]:
    head = {"classifier.weight": network.head.weight, "classifier.bias": network.head.bias}
    if network.spd is not None:
        head |= {f"spd.{name}": tensor for name, tensor in network.spd.state_dict().items()}
    stem = network.encoder.patch_embedding.patch_embeddings
    if isinstance(stem, ConvStem):
        *layers, _ = stem.named_children()
        tensors = {f"stem.{i}.{name}": t for i, layer in layers for name, t in layer.state_dict().items()}
        last = {f"{PATCHES}.{len(layers)}": TRANSFORMERS[PATCHES]}
        renamed = rename_vit_weights(network.encoder, {n: t for n, t in TRANSFORMERS.items() if n != PATCHES} | last)
        tensors |= {f"transformer.{name}": tensor for name, tensor in renamed.items()}
        return {f"vit.{name}": tensor for name, tensor in tensors.items()} | head
    if network.pool in ("cls", "spd"):
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
