"""Images that say which they are, and a reader of them that can be watched, held up and killed."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivid_monai.storage.arrays import ArrayCache, Chunk, Rows, in_chunks
from vivid_monai.storage.skipped import Skipped

N = 300  # several chunks, the last one smaller
SHAPE = (N, 1, 2, 3)
BROKEN = (0, 3, 63, 64, 130, N - 1)


@dataclass
class Reader:
    """Index → an image of that number; a line in `log` for each one read.

    At image `kill_at` the process is killed; at image `wait_at` it waits until there is a file `go`.
    """

    log: Path
    broken: tuple[int, ...] = BROKEN
    kill_at: int = -1
    wait_at: int = -1

    def __call__(self, index: int) -> torch.Tensor | Skipped:
        if index == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        while index == self.wait_at and not self.log.with_name("go").exists():
            time.sleep(0.01)
        with self.log.open("a") as log:
            log.write(f"{index}\n")
        return Skipped(f"/images/{index}.png", f"nr. {index} – torn") if index in self.broken else image(index)

    def read(self) -> list[int]:
        """Which images have been read."""
        return sorted(map(int, self.log.read_text().split())) if self.log.exists() else []


def image(index: int) -> torch.Tensor:
    """uint8 (1, 2, 3), different for each index."""
    return torch.tensor([[[index % 256, index // 256, 1], [2, 3, 255]]], dtype=torch.uint8)


def key() -> dict:
    return {"files": "those"}


def get(
    root: Path | None,
    read: Callable[[int], torch.Tensor | Skipped],
    key: Callable[[], dict] = key,
    *,
    shape: tuple[int, ...] = SHAPE,
    workers: int = 0,
    **options: Any,
) -> Rows:
    """The entry of a key in the cache `root`, of images that `read` reads."""

    def fill(first: int) -> Iterator[Chunk]:
        return in_chunks(read, shape[1:], np.uint8, range(first, shape[0]), workers=workers)

    return ArrayCache(root, **options).get(key, fill, shape[0], shape=shape[1:], dtype=np.uint8)


def assert_right(pixels: Rows, n: int = N, broken: Iterable[int] = BROKEN) -> None:
    """Every row is that of its image."""
    assert pixels.array.shape == (n, 1, 2, 3)
    assert pixels.array.dtype == np.uint8
    for index in range(n):
        got = pixels[index]
        if index in broken:
            assert got == Skipped(f"/images/{index}.png", f"nr. {index} – torn")
            assert not pixels.array[index].any()
        else:
            assert isinstance(got, torch.Tensor)
            assert torch.equal(got, image(index))
    assert sorted(pixels.unreadable) == [index for index in broken if index < n]


def build_in_process(root: Path, log: Path, kill_at: int, wait_at: int) -> None:
    """Build the entry; what is told on stderr goes to a file beside the log."""
    with log.with_suffix(".err").open("w") as told:
        os.dup2(told.fileno(), 2)
        assert_right(get(root, Reader(log, kill_at=kill_at, wait_at=wait_at)))
