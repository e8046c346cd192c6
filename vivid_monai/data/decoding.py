"""Many images decoded in order, by threads or by worker processes."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from vivid_monai.data.skipped import Skipped
from vivid_monai.errors import VividError

Read = Callable[[int], torch.Tensor | Skipped]
"""Index → uint8 (C, H, W), or why not. Where worker processes are started afresh, it must be picklable."""

_CHUNK = 64  # images: 3 MB at 224 px travel from a worker at once


def decoded(
    read: Read, shape: tuple[int, ...], todo: range, *, workers: int = 0
) -> Iterator[tuple[np.ndarray, dict[int, Skipped]]]:
    """All images of `todo`, in order, by chunks.

    Args:
        read: reads one image.
        shape: (C, H, W) of every image.
        todo: indices.
        workers: processes that read; 0: threads of this process.

    Yields:
        uint8 (k, C, H, W), zeros where an image cannot be read; index → why not.

    Raises:
        VividError: an image of another shape.
    """
    if workers:
        order = BatchSampler(todo, _CHUNK, drop_last=False)
        # A generator of its own: the global random state belongs to whoever asks for the images.
        loader = DataLoader(
            _Images(read), batch_sampler=order, num_workers=workers, collate_fn=_arrays, generator=torch.Generator()
        )
        chunks: Iterator[list[np.ndarray | Skipped]] = iter(loader)
        yield from _rows(chunks, shape, todo)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pieces = (todo[first : first + _CHUNK] for first in range(0, len(todo), _CHUNK))
            yield from _rows((_arrays(list(pool.map(read, piece))) for piece in pieces), shape, todo)


class _Images(Dataset[torch.Tensor | Skipped]):
    """What a worker process reads."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, index: int) -> torch.Tensor | Skipped:
        return self.read(index)


def _arrays(images: Sequence[torch.Tensor | Skipped]) -> list[np.ndarray | Skipped]:
    # Tensors would travel from a worker in shared memory, each with a file descriptor, and a machine has few of them.
    return [image if isinstance(image, Skipped) else image.numpy() for image in images]


def _rows(
    chunks: Iterator[list[np.ndarray | Skipped]], shape: tuple[int, ...], todo: range
) -> Iterator[tuple[np.ndarray, dict[int, Skipped]]]:
    indices = iter(todo)
    for images in chunks:
        rows, skipped = np.zeros((len(images), *shape), np.uint8), {}
        for row, image, index in zip(rows, images, indices, strict=False):
            if isinstance(image, Skipped):
                skipped[index] = image
            elif image.shape != shape:
                raise VividError(f"image {index} is {image.shape}, others are {shape}: one cache cannot hold both")
            else:
                row[:] = image
        yield rows, skipped
