"""ViT read through SPD, as a model of transformers. This file goes into Hugging Face folders, to be run from there."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ViTConfig, ViTModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTPreTrainedModel

from vivid_monai.networks.spd import SPD


class ViTForImageClassificationBySPD(ViTPreTrainedModel):
    """transformers' ViT, the embeddings of SPD over all its tokens, and a linear head on them.

    Args:
        config: of the ViT; its attribute `spd` has the keyword arguments of SPD, `id2label` the findings.
    """

    config_class = ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.spd = SPD(**config.spd)
        self.classifier = nn.Linear(self.spd.out_dim, len(config.id2label))
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **options: Any) -> ImageClassifierOutput:
        """Logits (B, F) of images (B, C, H, W); with labels float (B, F) in [0, 1] the mean cross-entropy as well."""
        logits = self.classifier(self.spd.pool(self.vit(pixel_values, **options).last_hidden_state))
        loss = None if labels is None else binary_cross_entropy_with_logits(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
