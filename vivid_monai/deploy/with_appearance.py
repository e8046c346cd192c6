"""The features of a network and the appearance of the image in one row: both from one reading of the images."""

import torch
from torch import Tensor

from vivid_monai.deploy.appearance import CELLS, DIRECTIONS, SIDE, appearance
from vivid_monai.evaluation.encoders import Encoder


class WithAppearance(Encoder):
    """An encoder whose features (B, D) are followed by the appearance of the images, (B, D + WIDTH).

    On the features rests the head, on the appearance the :class:`~vivid_monai.deploy.assessment.Assessment`; a
    :class:`~vivid_monai.evaluation.features.FeatureStore` gives and keeps both as those of any encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.kind, self.architecture = encoder.kind, encoder.architecture
        settings = {**encoder.settings, "appearance": [SIDE, CELLS, DIRECTIONS]}
        super().__init__(encoder, encoder.preprocess, pool=encoder.pool, source=encoder.source, settings=settings)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat((self.network(images), appearance(images)), dim=1)
