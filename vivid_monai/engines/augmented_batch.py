"""Batches of training: bytes go to the device, and become the network's input there."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vivid_monai.data.augmentation import RandomAugmentation
from vivid_monai.engines.step import prepare_batch


class AugmentedBatch:
    """A trainer's ``prepare_batch``: moves pixels as uint8, a quarter of the bytes, and augments them on the device.

    Args:
        augmentation: that of the data set, which drew for each item what it does here to the batch.
    """

    def __init__(self, augmentation: RandomAugmentation) -> None:
        self.augmentation = augmentation

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As :func:`~vivid_monai.engines.step.prepare_batch`."""
        pixels, asked = prepare_batch(batch, device, non_blocking, **kwargs)
        return self.augmentation(pixels, batch["drawn"].to(pixels.device, non_blocking=non_blocking)), asked
