"""The learning rate's shape."""

import pytest
import torch

from vivid_monai.engines.step import warmup_cosine
from vivid_monai.errors import VividError


def rates(steps: int, **options) -> list[list[float]]:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (2e-5, 1e-4)]
    optimizer = torch.optim.AdamW(groups)
    scheduler = warmup_cosine(optimizer, steps=steps, **options)
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return [*seen, [group["lr"] for group in optimizer.param_groups]]


def test_warms_up_to_each_groups_peak_and_ends_at_a_tenth_of_it():
    seen = rates(1000, warmup_steps=100, final_fraction=0.1)
    assert seen[0] == [0, 0]
    assert seen[50] == pytest.approx([1e-5, 5e-5])
    assert seen[100] == pytest.approx([2e-5, 1e-4])
    assert seen[550] == pytest.approx([2e-5 * 0.55, 1e-4 * 0.55])
    assert seen[1000] == pytest.approx([2e-6, 1e-5])


@pytest.mark.parametrize(
    "options", [{"warmup_steps": 10}, {"warmup_steps": -1}, {"warmup_steps": 1, "final_fraction": 2}]
)
def test_refuses_what_does_not_fit(options):
    with pytest.raises(VividError):
        rates(10, **options)
