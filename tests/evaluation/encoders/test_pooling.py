"""Tokens to features."""

import pytest
import torch

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import choose_pool, pool_tokens


@pytest.mark.parametrize(
    ("asked", "cls", "patches", "expected"),
    [
        ("cls", True, True, "cls"),
        ("cls", False, True, "pooled"),
        ("mean", False, True, "mean"),
        ("mean", False, False, "pooled"),
        ("cls+mean", True, True, "cls+mean"),
        ("cls+mean", False, True, "pooled"),
        ("pooled", True, True, "pooled"),
    ],
)
def test_a_network_without_the_tokens_gives_its_own_pooled_output(
    asked: str, cls: bool, patches: bool, expected: str
) -> None:
    assert choose_pool(asked, cls=cls, patches=patches) == expected


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(VividError, match="pool='max' must be one of cls, mean, cls\\+mean, pooled"):
        choose_pool("max", cls=True, patches=True)


def test_the_mean_leaves_out_what_stands_before_the_patches() -> None:
    tokens = torch.tensor([[[9.0], [100.0], [200.0], [1.0], [2.0], [6.0]]]).bfloat16()
    assert pool_tokens(tokens, "cls", prefix=3).tolist() == [[9.0]]
    assert pool_tokens(tokens, "mean", prefix=3).tolist() == [[3.0]]
    both = pool_tokens(tokens, "cls+mean", prefix=3)
    assert both.tolist() == [[9.0, 3.0]]
    assert both.dtype == torch.float32
