"""The ResNet as a backbone: tokens, grid, and independence of the images in a batch."""

import json

import pytest
import torch
from torch import nn

from vivid_monai.errors import VividError
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.modules import fingerprint, load_module, save_module
from vivid_monai.networks.resnet import ResNet

pytestmark = pytest.mark.numeric

SHAPES = {2: ((40, 64), (2, 2)), 3: ((33, 16, 48), (2, 1, 2))}


@pytest.fixture(params=[2, 3])
def resnet(request: pytest.FixtureRequest) -> ResNet:
    torch.manual_seed(0)
    size, grid = SHAPES[request.param]
    resnet = ResNet(img_size=size, spatial_dims=request.param, width=8, in_channels=2)
    assert resnet.grid == grid
    return resnet


def images(resnet: ResNet, n: int) -> torch.Tensor:
    return torch.randn(n, *resnet.image_shape, generator=torch.Generator().manual_seed(1))


def test_the_published_widths_and_sizes() -> None:
    """ResNet-18 and -50 without their classifier have 11.2 and 23.5 million parameters (torchvision)."""
    expected = {18: 11_176_512, 50: 23_508_032}
    for depth, parameters in expected.items():
        with torch.device("meta"):
            resnet = ResNet(depth=depth, in_channels=3)
        assert sum(p.numel() for p in resnet.parameters()) - 2 * resnet.embed_dim == parameters
        assert resnet(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 49, resnet.embed_dim)
        assert (resnet.grid, resnet.prefix, resnet.embed_dim) == ((7, 7), 0, 512 if depth == 18 else 2048)


def test_tokens_are_the_cells_of_the_last_map(resnet: ResNet) -> None:
    x = images(resnet, 2)
    tokens = resnet(x)
    cells = resnet.stages(resnet.stem(x))
    assert cells.shape[2:] == resnet.grid
    assert tokens.shape == (2, torch.Size(resnet.grid).numel(), 64) == (2, cells[0, 0].numel(), resnet.embed_dim)
    at = tuple(side - 1 for side in resnet.grid)
    torch.testing.assert_close(tokens[1, -1], resnet.norm(cells[(1, slice(None), *at)]))


def test_an_image_is_what_it_is_alone_in_training_too(resnet: ResNet) -> None:
    """No batch statistics: micro-batches, processes and a batch of one give the same."""
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in resnet.modules())
    x = images(resnet.train().double(), 3).double()
    torch.testing.assert_close(resnet(x)[1:2], resnet(x[1:2]), atol=1e-10, rtol=1e-10)


def test_every_parameter_gets_a_gradient(resnet: ResNet) -> None:
    tokens = resnet(images(resnet, 2))
    (tokens * torch.randn(tokens.shape)).sum().backward()
    assert [name for name, p in resnet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_round_trip(resnet: ResNet, tmp_path) -> None:
    save_module(resnet, tmp_path / "resnet.safetensors", kind="resnet", config=json.loads(json.dumps(resnet.config)))
    again = load_module(tmp_path / "resnet.safetensors", {"resnet": ResNet}).module
    assert again.config == resnet.config
    assert fingerprint(again) == fingerprint(resnet)
    assert torch.equal(again(images(resnet, 2)), resnet(images(resnet, 2)))


def test_a_classifier_pools_its_mean_and_says_that_there_is_no_cls(resnet: ResNet) -> None:
    classifier = Classifier(resnet, 3, pool=None)
    x = images(resnet, 2)
    torch.testing.assert_close(classifier(x), classifier.head(resnet(x).mean(1)))
    with pytest.raises(VividError, match=r"pool='cls': this network has no such.*it has mean"):
        Classifier(resnet, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 101}, "depth=101"),
        ({"spatial_dims": 1}, "spatial_dims=1"),
        ({"img_size": (32, 32), "spatial_dims": 3}, "img_size"),
        ({"width": 7}, "width=7"),
        ({"in_channels": 0}, "in_channels=0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(VividError, match=message):
        ResNet(**arguments)


def test_images_of_another_size_are_refused(resnet: ResNet) -> None:
    with pytest.raises(VividError, match="does not fit a ResNet built for images"):
        resnet(images(resnet, 1).flip(0)[..., 1:])


@pytest.mark.parametrize("dims", [2, 3])
def test_batch_norm_is_of_the_whole_network_and_in_its_config(dims: int) -> None:
    torch.manual_seed(0)
    made = ResNet(img_size=32, spatial_dims=dims, depth=10, width=8, norm="batch")
    kinds = {type(module) for module in made.modules()}
    assert nn.GroupNorm not in kinds
    assert {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims] in kinds
    assert ResNet(**made.config).state_dict().keys() == made.state_dict().keys()
    with pytest.raises(VividError, match="group or batch"):
        ResNet(norm="layer")
