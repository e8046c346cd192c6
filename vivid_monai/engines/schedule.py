"""The learning rate over a run: linear warm-up, then a cosine down to a floor, the same shape for every group."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from vivid_monai.errors import VividError


def warmup_cosine(
    optimizer: Optimizer, *, steps: int, warmup_steps: int = 500, final_fraction: float = 0.1
) -> LambdaLR:
    """Scheduler stepped once per optimiser step (paper: 500 warm-up steps, cosine to 10 % of each group's peak).

    Args:
        steps: optimiser steps of the whole run.
        warmup_steps: steps from 0 to the peak; must leave room for the cosine.
        final_fraction: learning rate at the end, as a fraction of the peak, in [0, 1].

    Raises:
        VividError: the warm-up does not fit into the run, or the fraction is out of range.
    """
    if not 0 <= warmup_steps < steps:
        raise VividError(
            f"warmup_steps={warmup_steps} does not fit into a run of {steps} steps; set --warmup_steps below the "
            "run's length (max_epochs x epoch_length)"
        )
    if not 0 <= final_fraction <= 1:
        raise VividError(f"final_fraction must lie in [0, 1], got {final_fraction}")
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps, min_lr_rate=final_fraction
    )
