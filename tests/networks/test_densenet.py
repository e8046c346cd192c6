"""The DenseNet as a backbone: tokens, grid, and independence of the images in a batch."""

import json

import pytest
import torch
from torch import nn

from vivid_monai.errors import VividError
from vivid_monai.networks.classifier import BACKBONES, Classifier
from vivid_monai.networks.densenet import DenseNet
from vivid_monai.networks.modules import fingerprint, load_module, save_module

pytestmark = pytest.mark.numeric

SHAPES = {2: ((40, 65), (1, 2)), 3: ((29, 64, 30), (1, 2, 1))}


@pytest.fixture(params=[2, 3])
def densenet(request: pytest.FixtureRequest) -> DenseNet:
    torch.manual_seed(0)
    size, grid = SHAPES[request.param]
    densenet = DenseNet(img_size=size, spatial_dims=request.param, growth=4, in_channels=2)
    assert densenet.grid == grid
    return densenet


def images(densenet: DenseNet, n: int) -> torch.Tensor:
    return torch.randn(n, *densenet.image_shape, generator=torch.Generator().manual_seed(1))


def test_the_published_widths_and_size() -> None:
    """DenseNet-121 without its classifier has 6.95 million parameters (torchvision)."""
    with torch.device("meta"):
        densenet = DenseNet(in_channels=3)
    assert sum(p.numel() for p in densenet.parameters()) - 2 * densenet.embed_dim == 6_953_856
    assert densenet(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 49, 1024)
    assert (densenet.grid, densenet.prefix) == ((7, 7), 0)


@pytest.mark.parametrize("pixels", [29, 31, 32, 60, 61, 112, 224])
def test_the_grid_is_that_of_the_last_map(pixels: int) -> None:
    with torch.device("meta"):
        densenet = DenseNet(img_size=pixels, growth=4)
    assert densenet(torch.empty(1, 1, pixels, pixels, device="meta")).shape[1] == densenet.grid[0] ** 2


def test_tokens_are_the_cells_of_the_last_map(densenet: DenseNet) -> None:
    x = images(densenet, 2)
    tokens, cells = densenet(x), densenet.features(x).relu()
    assert tokens.shape == (2, cells[0, 0].numel(), densenet.embed_dim)
    at = tuple(side - 1 for side in densenet.grid)
    torch.testing.assert_close(tokens[1, -1], densenet.norm(cells[(1, slice(None), *at)]))


def test_an_image_is_what_it_is_alone_in_training_too(densenet: DenseNet) -> None:
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in densenet.modules())
    x = images(densenet.train().double(), 3).double()
    torch.testing.assert_close(densenet(x)[1:2], densenet(x[1:2]), atol=1e-10, rtol=1e-10)


def test_every_parameter_gets_a_gradient(densenet: DenseNet) -> None:
    tokens = densenet(images(densenet, 2))
    (tokens * torch.randn(tokens.shape)).sum().backward()
    assert [name for name, p in densenet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_round_trip_as_a_backbone_with_a_head(densenet: DenseNet, tmp_path) -> None:
    config = json.loads(json.dumps(densenet.config))
    save_module(densenet, tmp_path / "densenet.safetensors", kind="densenet", config=config)
    again = load_module(tmp_path / "densenet.safetensors", BACKBONES).module
    assert fingerprint(again) == fingerprint(densenet)
    classifier, x = Classifier(again, 3, pool=None), images(densenet, 2)
    torch.testing.assert_close(classifier(x), classifier.head(densenet(x).mean(1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims=1"),
        ({"img_size": (32, 32), "spatial_dims": 3}, "img_size"),
        ({"img_size": 28}, "at least 29"),
        ({"growth": 0}, "growth=0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(VividError, match=message):
        DenseNet(**arguments)


def test_images_of_another_size_are_refused(densenet: DenseNet) -> None:
    with pytest.raises(VividError, match="does not fit a DenseNet built for images"):
        densenet(images(densenet, 1)[..., 1:])


@pytest.mark.parametrize("dims", [2, 3])
def test_batch_norm_is_of_the_whole_network_and_in_its_config(dims: int) -> None:
    torch.manual_seed(0)
    made = DenseNet(img_size=32, spatial_dims=dims, growth=4, norm="batch")
    kinds = {type(module) for module in made.modules()}
    assert nn.GroupNorm not in kinds
    assert {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims] in kinds
    assert DenseNet(**made.config).state_dict().keys() == made.state_dict().keys()
    with pytest.raises(VividError, match="group"):
        DenseNet(norm="layer")
