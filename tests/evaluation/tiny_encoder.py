"""The smallest encoder there is."""

import hashlib

import torch
from torch import nn

from vivid_monai.images.preprocess import Preprocess

BATCH_SIZE = 4


class TinyEncoder(nn.Module):
    """Dropout, then a linear map of the pixels; counts the batches that went through it."""

    def __init__(self, *, dim: int = 5, size: int = 8, seed: int = 0, **preprocess) -> None:
        super().__init__()
        self.preprocess = Preprocess(size=size, **preprocess)
        self.dim, self.shape = dim, (dim,)
        self.dropout = nn.Dropout(0.5)
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(dim, size * size, generator=generator))
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return self.dropout(images.flatten(1)) @ self.weight.T

    def describe(self) -> dict:
        return {"kind": "tiny", "dim": self.dim, "fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        told = repr(self.preprocess.to_dict()).encode() + self.weight.detach().numpy().tobytes()
        return hashlib.sha256(told).hexdigest()
