"""The features of a network and the appearance of the image in one row: what an assessment is about."""

import torch
from torch import Tensor

from vivid_monai.deploy.appearance import SIDE, appearance
from vivid_monai.evaluation.encoders import Encoder


class WithAppearance(Encoder):
    """An encoder whose features (B, D) are followed by the appearance of the images: (B, D + SIDE² + 2).

    Its rows are what :class:`~vivid_monai.deploy.assessment.Assessment` is fitted on and asked about; a
    :class:`~vivid_monai.evaluation.features.FeatureStore` gives and keeps them as those of any encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.kind, self.architecture = encoder.kind, encoder.architecture
        settings = {**encoder.settings, "appearance": SIDE}
        super().__init__(encoder, encoder.preprocess, pool=encoder.pool, source=encoder.source, settings=settings)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat((self.network(images), appearance(images)), dim=1)
