"""A small classifier with weights that are nearly nowhere zero."""

import torch
from torch import nn

from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT

FIELDS = ["Edema", "Fracture, location unknown", "Überlagerung", "Support Devices", "Lung Opacity"]
SIZE = 32
PREPROCESS = Preprocess(size=SIZE, mean=0.4, std=0.2)


def make_classifier(*, pool: str = "cls", seed: int = 0, **options) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vit = ViT(**{"img_size": SIZE, "patch_size": 8, "preset": "micro", **options})
        one = Classifier(vit, len(FIELDS), pool=pool, spd=SPD(vit.embed_dim, groups=3) if pool == "spd" else None)
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
            for block in vit.blocks:  # as in a new network: the ONNX exporter makes equal weights one
                block.mlp.linear2.bias.zero_()
            for norm in vit.modules():
                if isinstance(norm, nn.BatchNorm2d):  # of a trained one
                    norm.running_mean.normal_(std=0.2)
                    norm.running_var.uniform_(0.5, 2)
                    norm.num_batches_tracked.fill_(7)
    return one.eval()


def make_images(n: int, *, channels: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
