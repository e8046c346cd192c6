"""The Vision Transformer that is trained and shipped, composed of MONAI's blocks."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from monai.networks.blocks import MLPBlock, PatchEmbeddingBlock, SABlock
from monai.networks.layers import DropPath
from torch import Tensor, nn

from vivid_monai.errors import VividError


@dataclass(frozen=True)
class Preset:
    """Width, depth and attention heads of a ViT; the MLPs are four times as wide as the tokens."""

    width: int
    depth: int
    heads: int


# tiny and small: Touvron et al. 2021 (DeiT), table 1; base: Dosovitskiy et al. 2021, table 1;
# micro: ours, small enough to be pretrained on two CPU cores in minutes.
PRESETS = {
    "micro": Preset(width=128, depth=6, heads=4),
    "tiny": Preset(width=192, depth=12, heads=3),
    "small": Preset(width=384, depth=12, heads=6),
    "base": Preset(width=768, depth=12, heads=12),
}


class ViTBlock(nn.Module):
    """Pre-norm transformer block of MONAI's attention and MLP, with drop path on both residual branches.

    MONAI's `TransformerBlock` has no drop path and always holds a cross-attention norm that gets no gradient, which
    `DistributedDataParallel` refuses.
    """

    def __init__(self, *, width: int, heads: int, norm_eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        # No attention dropout: MONAI hands its rate to the fused kernel in evaluation too.
        self.attn = SABlock(width, heads, dropout_rate=0.0, qkv_bias=True, use_flash_attention=True)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = MLPBlock(width, 4 * width)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) that returns its normalised tokens.

    Attributes:
        embed_dim: width D of a token.
        num_patches: number N of patch tokens.
        grid: (rows, columns) of the patches; rows * columns = N.
        config: keyword arguments that build this network again; JSON-serialisable.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] | list[int] = 224,
        patch_size: int = 16,
        in_channels: int = 1,
        preset: str = "base",
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        """
        Args:
            img_size: pixels (height, width) of an image, or one number for squares; multiples of `patch_size`.
            patch_size: side of a square patch in pixels.
            in_channels: channels of an image.
            preset: "micro", "tiny", "small" or "base".
            drop_path: probability in [0, 1) of dropping a residual branch of the last block, per image, while training;
                it grows linearly from 0 at the first block (Huang et al. 2016, arXiv:1603.09382).
            norm_eps: epsilon of every LayerNorm: 1e-6 in timm, 1e-12 by default in transformers.

        Raises:
            VividError: an argument is out of its range.
        """
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if preset not in PRESETS:
            raise VividError(f"preset={preset!r} is unknown: choose one of {', '.join(PRESETS)}")
        if patch_size < 1 or in_channels < 1 or norm_eps <= 0:
            raise VividError(
                f"patch_size={patch_size}, in_channels={in_channels} and norm_eps={norm_eps} must be positive"
            )
        if min(height, width) < patch_size or height % patch_size or width % patch_size:
            raise VividError(f"img_size={height} x {width} must be a multiple of patch_size={patch_size}")
        if not 0 <= drop_path < 1:
            raise VividError(f"drop_path={drop_path} must lie in [0, 1)")
        shape = PRESETS[preset]
        self.config: dict[str, Any] = {
            "img_size": [height, width],
            "patch_size": patch_size,
            "in_channels": in_channels,
            "preset": preset,
            "drop_path": drop_path,
            "norm_eps": norm_eps,
        }
        self.image_shape = (in_channels, height, width)
        self.embed_dim = shape.width
        self.grid = (height // patch_size, width // patch_size)
        self.num_patches = prod(self.grid)
        self.patch_embedding = PatchEmbeddingBlock(
            in_channels=in_channels,
            img_size=(height, width),
            patch_size=patch_size,
            hidden_size=shape.width,
            num_heads=shape.heads,
            spatial_dims=2,
        )
        # The CLS token carries its own position: one parameter where checkpoints have the sum of two.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        rates = [drop_path * i / (shape.depth - 1) for i in range(shape.depth)]
        self.blocks = nn.ModuleList(
            ViTBlock(width=shape.width, heads=shape.heads, norm_eps=norm_eps, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(shape.width, eps=norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normals of 0.02, LeCun's for the patch projection, zero biases (Dosovitskiy et al. 2021)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=prod(module.weight.shape[1:]) ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.patch_embedding.position_embeddings, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of a batch of images.

        Args:
            x: (B, C, H, W) float, normalised as the weights' preprocessing says.

        Returns:
            (B, 1 + N, D): the CLS token, then the patches row by row, after the final LayerNorm.

        Raises:
            VividError: the images are not of the size the network was built for.
        """
        if not torch.jit.is_tracing() and (x.shape[1], x.shape[2], x.shape[3]) != self.image_shape:
            raise VividError(f"a batch of shape {list(x.shape)} does not fit a ViT built for images {self.image_shape}")
        patches = self.patch_embedding(x)
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


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
