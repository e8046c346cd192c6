"""The smallest encoder there is, and one that can be killed on the way."""

import hashlib
import os
import signal
from pathlib import Path

import torch
from torch import nn

from vivid_monai.data.manifest import Manifest
from vivid_monai.evaluation import sinks
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.images.preprocess import Preprocess

BATCH_SIZE = 4


class TinyEncoder(nn.Module):
    """Dropout, then a linear map of the pixels; counts the batches that went through it."""

    def __init__(self, *, dim: int = 5, size: int = 8, seed: int = 0, **preprocess) -> None:
        super().__init__()
        self.preprocess = Preprocess(size=size, **preprocess)
        self.dim = dim
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


class Mortal(TinyEncoder):
    """Writes a line per batch, and dies in the forward pass of batch ``kill_at``."""

    def __init__(self, log: Path, kill_at: int) -> None:
        super().__init__()
        self.log, self.kill_at = log, kill_at

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(self.batches) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.log.open("a") as log:
            log.write(f"{len(images)}\n")
        return super().forward(images)


def extract_in_process(manifest: Path, cache: Path, log: Path, kill_at: int, where: str, result: Path) -> None:
    """Extract the training images, with a line in ``log`` for each batch; the features' SHA-256 goes to ``result``.

    Kills the process (SIGKILL) at batch ``kill_at``, unless that is −1: in the "forward" pass, or between the "append"
    of the features and the record of it.
    """
    torch.set_num_threads(1)
    encoder = Mortal(log, kill_at if where == "forward" else -1)
    if where == "append":
        write = sinks.whole_file

        def die_before_the_record(path):
            if len(encoder.batches) == kill_at + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(path)

        sinks.whole_file = die_before_the_record
    data = Manifest.load(manifest)
    got = FeatureStore(cache, batch_size=BATCH_SIZE).features(encoder, data, "train", data.fields)
    result.write_text(hashlib.sha256(got.x.tobytes()).hexdigest())
