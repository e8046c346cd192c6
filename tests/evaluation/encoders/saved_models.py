"""Small models of the real architectures with random weights, saved as their makers save them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
MLP = {**SMALL, "intermediate_size": 48}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}
SQUARE = {"height": 32, "width": 32}
RAD_DINO = {"mean": [0.5307] * 3, "std": [0.2583] * 3}


def vit() -> Any:
    return hf.ViTModel(hf.ViTConfig(**MLP)), hf.ViTImageProcessorPil(size=SQUARE)


def vit_classifier() -> Any:
    return hf.ViTForImageClassification(hf.ViTConfig(**MLP)), hf.ViTImageProcessorPil(size=SQUARE)


def deit() -> Any:
    processor = hf.DeiTImageProcessorPil(size={"height": 40, "width": 40}, crop_size=SQUARE)
    return hf.DeiTModel(hf.DeiTConfig(**MLP)), processor


def beit() -> Any:
    return hf.BeitModel(hf.BeitConfig(**MLP)), hf.BeitImageProcessorPil(size=SQUARE, do_center_crop=False)


def data2vec() -> Any:
    config = hf.Data2VecVisionConfig(**MLP)
    return hf.Data2VecVisionModel(config), hf.BeitImageProcessorPil(size=SQUARE, do_center_crop=False)


def msn() -> Any:
    return hf.ViTMSNModel(hf.ViTMSNConfig(**MLP)), hf.ViTImageProcessorPil(size=SQUARE)


def ijepa() -> Any:
    return hf.IJepaModel(hf.IJepaConfig(**MLP)), hf.ViTImageProcessorPil(size=SQUARE)


def mae() -> Any:
    return hf.ViTMAEModel(hf.ViTMAEConfig(**MLP)), hf.ViTImageProcessorPil(size=SQUARE)


def rad_dino() -> Any:
    processor = hf.BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SQUARE, image_mean=RAD_DINO["mean"], image_std=RAD_DINO["std"]
    )
    return hf.Dinov2Model(hf.Dinov2Config(**SMALL)), processor


def registers() -> Any:
    processor = hf.BitImageProcessorPil(size={"shortest_edge": 37}, crop_size=SQUARE)
    return hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**SMALL)), processor


def dinov3() -> Any:
    """Its own processor needs torchvision; ViT's with the same values does the same up to rounding."""
    processor = hf.ViTImageProcessorPil(size=SQUARE, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    return hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**MLP, num_register_tokens=4)), processor


def siglip_vision() -> Any:
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**MLP)), hf.SiglipImageProcessorPil(size=SQUARE)


def siglip() -> Any:
    model = hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=MLP))
    return model, hf.SiglipImageProcessorPil(size=SQUARE)


def clip() -> Any:
    model = hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=MLP, projection_dim=16))
    return model, hf.CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE)


def resnet() -> Any:
    model = hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    return model, hf.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875)


def convnext() -> Any:
    model = hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))
    return model, hf.ConvNextImageProcessorPil(size={"shortest_edge": 384})


def randomise(model: torch.nn.Module) -> None:
    """Weights of which each matters: initial ones are near zero, and biases are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def saved(build: Callable, folder: Path) -> tuple[Any, Any]:
    model, processor = build()
    randomise(model)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    if build is dinov3:
        edit(folder, image_processor_type="DINOv3ViTImageProcessorFast", do_center_crop=None, device=None)
    return model, processor


def edit(folder: Path, file: str = "preprocessor_config.json", **changes: Any) -> None:
    values = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: value for key, value in values.items() if value != "gone"}))


def vision(model: Any) -> Any:
    return getattr(model, "vision_model", None) or getattr(model, "vit", model)
