"""The order of training: an endless stream of batches that can be entered at any step."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from vivid_monai.errors import VividError


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (index, draw) in which step k is a pure function of the seed and k.

    Epochs are laid end to end, each a permutation of its own, and cut into global batches; a batch may hold the end of
    one epoch and the beginning of the next, so no item is ever left out. `draw` counts all items since step 0 and seeds
    what is random about an item. Rank r takes the r-th of `world_size` equal slices of the global batch: how many
    processes share the work changes neither the batches nor what happens to the images in them.

    Args:
        n: items in the dataset.
        batch_size: items per step, over all ranks.
        seed: of the permutations, >= 0.
        rank, world_size: this process and how many there are.
        start: first step of the next iteration; set it before ``iter()`` to resume.

    Raises:
        VividError: no items, a batch that the ranks cannot share evenly, a negative seed or start.
    """

    def __init__(
        self, n: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        if n < 1:
            raise VividError("sampler: there are no items to draw from")
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise VividError(
                f"sampler: a batch of {batch_size} items over all processes cannot be shared evenly by {world_size}"
            )
        if not 0 <= rank < world_size:
            raise VividError(f"sampler: rank {rank} is not one of {world_size} processes")
        if seed < 0 or start < 0:
            raise VividError(f"sampler: seed ({seed}) and start ({start}) must not be negative")
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world_size, self.start = rank, world_size, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world_size
        epoch, order = -1, np.empty(0, np.int64)
        step = self.start
        while True:
            first = step * self.batch_size + self.rank * share
            batch = []
            for draw in range(first, first + share):
                if draw // self.n != epoch:
                    epoch = draw // self.n
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
                batch.append((int(order[draw % self.n]), draw))
            yield batch
            step += 1
