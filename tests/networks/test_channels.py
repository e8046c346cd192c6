"""Colour projections folded for grey images."""

import pytest
import torch
from torch.nn import functional as F

from vivid_monai.errors import VividError
from vivid_monai.networks.weights import fold_channels

COLOUR = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
GREY = ([0.53], [0.27])


def test_one_grey_channel_equals_three_equal_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(8, generator=generator, dtype=torch.float64)
    grey = torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in COLOUR)
    expected = F.conv2d((grey - mean) / std, weight, bias, stride=4)
    folded, shifted = fold_channels(weight, bias, colour_stats=COLOUR, grey_stats=GREY)
    found = F.conv2d((grey - GREY[0][0]) / GREY[1][0], folded, shifted, stride=4)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("colour", "grey", "name"),
    [(GREY, GREY, "colour_stats"), (COLOUR, COLOUR, "grey_stats"), (COLOUR, ([0.5], [0.0]), "grey_stats")],
)
def test_statistics_that_do_not_fit_are_refused(colour: tuple, grey: tuple, name: str) -> None:
    with pytest.raises(VividError, match=name):
        fold_channels(torch.zeros(2, 3, 4, 4), torch.zeros(2), colour_stats=colour, grey_stats=grey)
