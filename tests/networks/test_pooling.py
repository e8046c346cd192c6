"""Tokens to features."""

import pytest
import torch

from vivid_monai.errors import VividError
from vivid_monai.networks.pooling import choose_pool, pool_tokens

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(
    ("cls", "patches", "pooled", "spd", "default", "has"),
    [
        (True, True, True, False, "cls", {"cls", "mean", "cls+mean", "pooled"}),
        (False, True, True, False, "pooled", {"mean", "pooled"}),
        (False, True, False, False, "mean", {"mean"}),
        (False, False, True, False, "pooled", {"pooled"}),
        (True, True, False, False, "cls", {"cls", "mean", "cls+mean"}),
        (True, True, False, True, "spd", {"cls", "mean", "cls+mean", "spd"}),
        (False, True, False, True, "spd", {"mean", "spd"}),
    ],
)
def test_a_network_pools_what_it_has_and_nothing_else(
    cls: bool, patches: bool, pooled: bool, spd: bool, default: str, has: set[str]
) -> None:
    what = {"cls": cls, "patches": patches, "pooled": pooled, "spd": spd}
    assert choose_pool(None, **what) == default
    for pool in ("cls", "mean", "cls+mean", "pooled", "spd"):
        if pool in has:
            assert choose_pool(pool, **what) == pool
        else:
            with pytest.raises(VividError, match=rf"this network has no such.*it has .*{default}"):
                choose_pool(pool, **what)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(VividError, match="pool='max' must be one of cls, mean, cls\\+mean, pooled"):
        choose_pool("max", cls=True, patches=True)


def test_the_mean_leaves_out_what_stands_before_the_grid() -> None:
    tokens = torch.tensor([[[9.0], [100.0], [200.0], [1.0], [2.0], [6.0]]])
    assert pool_tokens(tokens, "cls", prefix=3).tolist() == [[9.0]]
    assert pool_tokens(tokens, "mean", prefix=3).tolist() == [[3.0]]
    assert pool_tokens(tokens, "cls+mean", prefix=3).tolist() == [[9.0, 3.0]]
