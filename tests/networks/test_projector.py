"""The projector's shape, order and range."""

import pytest
import torch
from torch import nn

from vivid_monai.errors import VividError
from vivid_monai.networks.projector import Projector


def test_layers_and_widths() -> None:
    projector = Projector(8, 20)
    assert [type(layer) for layer in projector] == [nn.Linear, nn.GELU, nn.Dropout, nn.Linear, nn.LayerNorm]
    assert projector[0].out_features == 16
    output = projector.eval()(torch.randn(2, 7, 8))
    assert output.shape == (2, 7, 20)
    torch.testing.assert_close(output.var(-1, unbiased=False), torch.ones(2, 7), atol=1e-2, rtol=0)


@pytest.mark.parametrize("arguments", [{"out_dim": 0}, {"dropout": 1.0}])
def test_bad_arguments_are_told(arguments: dict) -> None:
    with pytest.raises(VividError, match=next(iter(arguments))):
        Projector(8, **{"out_dim": 4} | arguments)


def test_embeddings_start_at_the_asked_scale():
    torch.manual_seed(0)
    out = Projector(16, 64, scale=0.05).eval()(torch.randn(10, 16))
    assert out.square().mean().sqrt().item() == pytest.approx(0.05, rel=1e-3)
    with pytest.raises(VividError, match="scale=0"):
        Projector(16, 64, scale=0)
