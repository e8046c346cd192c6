"""A patch projection trained on colour images, for grey ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vivid_monai.errors import VividError

Statistics = tuple[Sequence[float], Sequence[float]]


def fold_channels(
    weight: Tensor, bias: Tensor, *, colour_stats: Statistics, grey_stats: Statistics
) -> tuple[Tensor, Tensor]:
    """The projection of one grey channel that equals a projection of three equal colour channels.

    A grey image g in [0, 1], repeated over the channels c and normalised as the colour weights expect, is
    x_c = (g - m_c) / s_c. Our ViT sees y = (g - m) / s instead, so x_c = (s y + m - m_c) / s_c, and with it

        Σ_c W_c x_c + b  =  (Σ_c W_c s / s_c) y  +  b + Σ_c Σ_pixels W_c (m - m_c) / s_c :

    the same numbers from one channel, exactly, since patches are not padded.

    Args:
        weight: (D, C, P, P) of the colour projection.
        bias: (D,) of the colour projection.
        colour_stats: mean and standard deviation, C numbers each, on the scale [0, 1], of the colour weights.
        grey_stats: mean and standard deviation, one number each, with which the grey images are normalised.

    Returns:
        weight (D, 1, P, P) and bias (D,), in the dtype given, computed in float64.

    Raises:
        VividError: the statistics do not fit the channels, or a standard deviation is not positive.
    """
    channels = weight.shape[1]
    for name, stats, length in (("colour_stats", colour_stats, channels), ("grey_stats", grey_stats, 1)):
        if len(stats) != 2 or len(stats[0]) != length or len(stats[1]) != length or min(stats[1]) <= 0:
            raise VividError(f"{name}={stats!r} must be (mean, std) of {length} numbers each, std > 0")
    colour_mean, colour_std = (
        torch.tensor(values, dtype=torch.float64).view(1, channels, 1, 1) for values in colour_stats
    )
    grey_mean, grey_std = grey_stats[0][0], grey_stats[1][0]
    scaled = weight.double() / colour_std
    folded = (scaled * grey_std).sum(dim=1, keepdim=True)
    shift = (scaled * (grey_mean - colour_mean)).sum(dim=(1, 2, 3))
    return folded.to(weight.dtype), (bias.double() + shift).to(bias.dtype)
