"""The Vision Transformer that is trained and shipped, composed of MONAI's blocks."""

import warnings
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from monai.networks.blocks import MLPBlock, PatchEmbeddingBlock, SABlock
from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding
from monai.networks.layers import DropPath
from torch import Tensor, nn

from .errors import VividError
from .stem import ConvStem


class Preset(NamedTuple):
    """Width, depth and attention heads of a ViT; the MLPs are four times as wide as the tokens."""

    width: int
    depth: int
    heads: int


# tiny and small: Touvron et al. 2021 (DeiT), table 1; base: Dosovitskiy et al. 2021, table 1;
# nano and micro: ours, small enough to be pretrained on two CPU cores in minutes.
PRESETS = {
    "nano": Preset(width=128, depth=2, heads=4),
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
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) of images or volumes; returns normalised tokens.

    The one token before those of the patches is CLS. Attributes: see `scripts.classifier.BACKBONES`, and
    `heads` (attention heads of a block). `architecture` is such as "vit-micro/16" or "vit-micro/16-3d".

    Args:
        img_size: pixels or voxels of an image along each axis, or one number for all; multiples of `patch_size`.
        patch_size: of a patch, along each axis or one number for all.
        in_channels: channels of an image.
        preset: "nano", "micro", "tiny", "small" or "base"; None where `width`, `depth` and `heads` are all given.
        drop_path: probability in [0, 1) of dropping a residual branch of the last block, per image, while training;
            it grows linearly from 0 at the first block (Huang et al. 2016, arXiv:1603.09382).
        norm_eps: epsilon of every LayerNorm: 1e-6 in timm, 1e-12 by default in transformers.
        spatial_dims: 2 for images, 3 for volumes.
        width, depth, heads: instead of the preset's; the width a multiple of the heads.
        stem: "patch" (one linear map of a patch) or "conv" (`ConvStem`).
        positions: what the position embeddings, which are learned, start from: "normal" (noise) or "sincos" (sines and
            cosines of the place, Vaswani et al. 2017; the width a multiple of 4, of 6 for volumes).

    Raises:
        VividError: an argument is out of its range.
    """

    _shape: list[int]  # image_shape, in the form TorchScript compares

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        in_channels: int = 1,
        preset: str | None = "base",
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        spatial_dims: int = 2,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        stem: str = "patch",
        positions: str = "normal",
    ) -> None:
        super().__init__()
        if preset not in PRESETS and not (preset is None and width and depth and heads):
            raise VividError(
                f"preset={preset!r} is unknown: choose one of {', '.join(PRESETS)}, or give width, depth and heads"
            )
        if spatial_dims not in (2, 3) or stem not in ("patch", "conv") or positions not in ("normal", "sincos"):
            raise VividError(
                f"spatial_dims={spatial_dims} must be 2 or 3, stem={stem!r} patch or conv, and "
                f"positions={positions!r} normal or sincos"
            )
        size, patch = (
            [value] * spatial_dims if isinstance(value, int) else list(value) for value in (img_size, patch_size)
        )
        if not len(size) == len(patch) == spatial_dims:
            raise VividError(f"img_size={size} and patch_size={patch} must have {spatial_dims} numbers, one per axis")
        if min(patch) < 1 or in_channels < 1 or norm_eps <= 0:
            raise VividError(
                f"patch_size={patch_size}, in_channels={in_channels} and norm_eps={norm_eps} must be positive"
            )
        if any(side < p or side % p for side, p in zip(size, patch, strict=True)):
            told = " x ".join(map(str, size))
            raise VividError(f"img_size={told} must be a multiple of patch_size={patch_size}")
        if not 0 <= drop_path < 1:
            raise VividError(f"drop_path={drop_path} must lie in [0, 1)")
        default = PRESETS.get(preset or "", Preset(0, 0, 0))
        shape = Preset(*(own or theirs for own, theirs in zip((width, depth, heads), default, strict=True)))
        if min(shape) < 1 or shape.width % shape.heads:
            raise VividError(f"width, depth and heads must be positive, the width a multiple of the heads, got {shape}")
        if positions == "sincos" and shape.width % (2 * spatial_dims):
            raise VividError(
                f"positions='sincos' needs a width that is a multiple of {2 * spatial_dims}, got {shape.width}"
            )
        named = preset is not None and shape == default
        side = patch[0] if len(set(patch)) == 1 else patch
        # A key that was not there at first is kept only where it differs: files and fingerprints stay what they are.
        self.config: dict[str, Any] = {
            "img_size": size,
            "patch_size": side,
            "in_channels": in_channels,
            "preset": preset if named else None,
            "drop_path": drop_path,
            "norm_eps": norm_eps,
            **({} if named else shape._asdict()),
            **({"spatial_dims": 3} if spatial_dims == 3 else {}),
            **({"stem": stem} if stem != "patch" else {}),
            **({"positions": positions} if positions != "normal" else {}),
        }
        label = preset if named else "x".join(map(str, shape))
        patches = "x".join(map(str, patch)) if isinstance(side, list) else str(side)
        self.architecture = f"vit-{label}/{patches}" + ("-3d" if spatial_dims == 3 else "")
        self.image_shape = (in_channels, *size)
        self._shape = [in_channels, *size]
        self.embed_dim, self.heads, self.prefix = shape.width, shape.heads, 1
        self.grid = tuple(pixels // p for pixels, p in zip(size, patch, strict=True))
        self.patch_embedding = PatchEmbeddingBlock(
            in_channels=in_channels,
            img_size=size,
            patch_size=patch,
            hidden_size=shape.width,
            num_heads=shape.heads,
            spatial_dims=spatial_dims,
        )
        if stem == "conv":
            self.patch_embedding.patch_embeddings = ConvStem(in_channels, shape.width, patch)
        # The CLS token carries its own position: one parameter where checkpoints have the sum of two.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        rates = [drop_path * i / max(shape.depth - 1, 1) for i in range(shape.depth)]
        self.blocks = nn.ModuleList(
            ViTBlock(width=shape.width, heads=shape.heads, norm_eps=norm_eps, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(shape.width, eps=norm_eps)
        self._initialise(positions)

    def _initialise(self, positions: str) -> None:
        """Truncated normals of 0.02, LeCun's for the patch projection, zero biases (Dosovitskiy et al. 2021)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
                std = 0.02 if isinstance(module, nn.Linear) else prod(module.weight.shape[1:]) ** -0.5
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        own = self.patch_embedding.position_embeddings
        nn.init.trunc_normal_(own, std=0.02)
        if positions == "sincos":
            with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # MONAI calls meshgrid as it was once
                own.copy_(build_sincos_position_embedding(list(self.grid), self.embed_dim, len(self.grid)))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of a batch of images.

        Args:
            x: (B, C, *spatial) float, normalised as the weights' preprocessing says.

        Returns:
            (B, 1 + prod(grid), D): the CLS token, then the patches, the last axis running fastest, after a LayerNorm.

        Raises:
            VividError: the images are not of the size the network was built for.
        """
        if not torch.jit.is_tracing() and list(x.shape[1:]) != self._shape:
            raise VividError(f"a batch of shape {list(x.shape)} does not fit a ViT built for images {self.image_shape}")
        patches = self.patch_embedding(x)
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
