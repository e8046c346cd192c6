"""What transformers lacks of a ViT of VIVID-Med. This file goes into Hugging Face folders, to be run from there."""

from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTPreTrainedModel

from vivid_monai.errors import VividError  # noqa: F401 - transformers 5.5 copies only what is imported right here
from vivid_monai.networks.pooling import pool_tokens, pooled_width
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.stem import ConvStem


class ConvStemViTConfig(ViTConfig):
    """Of a ViT with a convolutional stem: a type of its own, so that nothing takes it for a ViT with linear patches.

    Args:
        pool: "cls", "mean", "cls+mean" or "spd": what the head reads.
        spd: keyword arguments of SPD, where the pool is "spd".
    """

    model_type = "vivid_conv_stem_vit"

    pool: str = "cls"
    spd: dict | None = None


class ConvStemViTModel(ViTPreTrainedModel):
    """The encoder: transformers' ViT, whose image is the feature map of the stem and whose patches are its pixels.

    The stem's last convolution is so the ViT's patch projection.
    """

    config_class = ConvStemViTConfig
    _keys_to_ignore_on_load_unexpected = ["^classifier", "^spd"]  # noqa: RUF012

    def __init__(self, config: ConvStemViTConfig) -> None:
        super().__init__(config)
        size, patch = (
            [one, one] if isinstance(one, int) else list(one) for one in (config.image_size, config.patch_size)
        )
        inner = deepcopy(config)
        inner.image_size = [pixels // side for pixels, side in zip(size, patch, strict=True)]
        inner.patch_size, inner.num_channels = 1, config.hidden_size
        self.stem = nn.Sequential(*list(ConvStem(config.num_channels, config.hidden_size, patch))[:-1])
        self.transformer = ViTModel(inner, add_pooling_layer=False)
        self.post_init()

    def forward(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        """`last_hidden_state` (B, 1 + patches, D) of images (B, C, H, W); `options` as of transformers' ViTModel."""
        return self.transformer(self.stem(pixel_values.to(self.dtype)), **options)


class ConvStemViTForImageClassification(ViTPreTrainedModel):
    """An encoder, the pool that `config` names over all its tokens, and a linear head on that.

    Args:
        config: of the encoder, with `pool` and `spd`; its `id2label` has the findings.
    """

    config_class = ConvStemViTConfig

    def __init__(self, config: ConvStemViTConfig) -> None:
        super().__init__(config)
        self.vit = self._encoder(config)
        self.spd = SPD(**config.spd) if config.spd else None
        self.pool = "spd" if config.spd else config.pool
        self.classifier = nn.Linear(pooled_width(config.hidden_size, self.pool, self.spd), len(config.id2label))
        self.post_init()

    def _encoder(self, config: ConvStemViTConfig) -> nn.Module:
        return ConvStemViTModel(config)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **options: Any) -> ImageClassifierOutput:
        """Logits (B, F) of images (B, C, H, W); with labels float (B, F) in [0, 1] the mean cross-entropy as well."""
        tokens = self.vit(pixel_values, **options).last_hidden_state
        features = self.spd.pool(tokens) if self.spd else pool_tokens(tokens, self.pool, prefix=1)
        logits = self.classifier(features)
        loss = None if labels is None else binary_cross_entropy_with_logits(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class ViTForImageClassificationBySPD(ConvStemViTForImageClassification):
    """The same on transformers' own ViT, which `AutoModel` loads without this file; its `config` has `spd` as well."""

    config_class = ViTConfig

    def _encoder(self, config: ViTConfig) -> nn.Module:
        return ViTModel(config, add_pooling_layer=False)
