"""The same encoder, shown images as a task has them: through a window, three slices at a time."""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from vivid_monai.evaluation.encoders.base import Encoder


def for_task(encoder: Encoder, *, window: tuple[float, float] | None = None, slices: int = 1) -> Encoder:
    """The encoder with the window and the slices of a task in its preprocessing, and so in its fingerprint.

    Args:
        encoder: stays as it is; the weights are shared.
        window: (centre, width) in HU; None leaves the encoder's own.
        slices: 1; or 3 for a slice with its two neighbours. An encoder of three channels sees them as its channels; one
            of one channel encodes each, and the features lie side by side (3 D).

    Raises:
        VividError: a window or number of slices that cannot be meant.
    """
    own = encoder.preprocess
    preprocess = replace(own, window=own.window if window is None else window, slices=slices)
    if preprocess == own:
        return encoder
    seen = copy.copy(encoder)
    seen.preprocess = preprocess
    return SliceEncoder(seen) if slices > own.channels else seen


class SliceEncoder(Encoder):
    """A one-channel encoder that encodes each of several slices; the features lie side by side, lowest slice first."""

    def __init__(self, encoder: Encoder) -> None:
        self.kind, self.architecture = encoder.kind, encoder.architecture
        super().__init__(
            encoder, encoder.preprocess, pool=encoder.pool, source=encoder.source, settings=encoder.settings
        )

    def forward(self, images: Tensor) -> Tensor:
        batch, slices = images.shape[:2]
        features = self.network(images.flatten(0, 1).unsqueeze(1))
        return torch.unflatten(features, 0, (batch, slices)).flatten(1)
