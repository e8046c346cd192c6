"""The convolutional stem, as a part of a ViT."""

import pytest
import torch
from torch import nn

from vivid_monai.errors import VividError
from vivid_monai.networks.stem import ConvStem
from vivid_monai.networks.vit import ViT

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dims", [2, 3])
def test_a_convolutional_stem_gives_the_same_grid(dims: int) -> None:
    torch.manual_seed(0)
    vit = ViT(img_size=32, preset="nano", spatial_dims=dims, stem="conv").train().double()
    convolutions = [m for m in vit.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    assert [m.out_channels for m in convolutions] == [16, 16, 32, 32, 64, 64, 128, 128, 128]
    x = torch.randn(2, 1, *[32] * dims, dtype=torch.float64)
    tokens = vit(x)
    assert tokens.shape == (2, 1 + 2**dims, 128)
    assert not torch.allclose(vit(x[:1]), tokens[:1])  # statistics of the batch, while training only
    (tokens * torch.randn(tokens.shape)).sum().backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("dims", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_maps_have_their_channels_last(dims: int, layout: torch.memory_format) -> None:
    """It is faster on CPUs, whatever the memory format of the weights."""
    stem, seen = ConvStem(1, 32, [4] * dims), []
    for layer in list(stem)[1:]:
        layer.register_forward_pre_hook(lambda _, maps: seen.append(maps[0].is_contiguous(memory_format=layout)))
    assert stem(torch.randn(2, 1, *[16] * dims)).shape == (2, 32, *[4] * dims)
    assert seen == [True] * 12


def test_axes_are_halved_as_often_as_their_patches_ask() -> None:
    stem = ConvStem(3, 32, [2, 8])
    assert [m.stride for m in stem if isinstance(m, nn.Conv2d)] == [
        (2, 2),
        (1, 1),
        (1, 2),
        (1, 1),
        (1, 2),
        (1, 1),
        (1, 1),
    ]
    assert stem(torch.randn(2, 3, 6, 16)).shape == (2, 32, 3, 2)


@pytest.mark.parametrize(("width", "patch"), [(32, [12, 16]), (32, [1, 1]), (30, [8, 8])])
def test_bad_arguments_are_told(width: int, patch: list[int]) -> None:
    with pytest.raises(VividError, match=f"stem='conv' needs patch_size=.*width={width} to be a multiple of"):
        ConvStem(1, width, patch)
