"""What ships: the ViT alone, with a linear head."""

import torch
from torch import Tensor, nn

from vivid_monai.errors import VividError
from vivid_monai.networks.vit import ViT

POOLS = ("cls", "mean", "cls+mean")


class ViTClassifier(nn.Module):
    """A ViT and a linear head on its pooled tokens: the `network_def` of the bundle.

    Attributes:
        encoder: the ViT.
        head: nn.Linear from the pooled features to the logits.
    """

    def __init__(self, encoder: ViT, num_classes: int, *, pool: str = "cls") -> None:
        """
        Args:
            encoder: the ViT.
            num_classes: number of logits.
            pool: "cls" (the CLS token), "mean" (mean of the patch tokens) or "cls+mean" (both, side by side).

        Raises:
            VividError: an argument is out of its range.
        """
        super().__init__()
        if pool not in POOLS or num_classes < 1:
            raise VividError(f"pool={pool!r} must be one of {', '.join(POOLS)} and num_classes={num_classes} positive")
        self.encoder = encoder
        self.pool = pool
        self.head = nn.Linear(encoder.embed_dim * (2 if pool == "cls+mean" else 1), num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (B, D), or (B, 2 D) for "cls+mean", of images (B, C, H, W)."""
        tokens = self.encoder(x)
        if self.pool == "cls":
            return tokens[:, 0]
        mean = tokens[:, 1:].mean(dim=1)
        return mean if self.pool == "mean" else torch.cat((tokens[:, 0], mean), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        return self.head(self.features(x))
