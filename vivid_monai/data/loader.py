"""Batches: how items become tensors of a batch, and the loaders of training and evaluation."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.errors import VividError
from vivid_monai.images.augment import Drawn
from vivid_monai.storage.skipped import Skipped


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (index, draw) in which step k is a pure function of the seed and k.

    Epochs, each a permutation of its own, are laid end to end and cut into global batches: no item is ever left out.
    `draw` counts all items since step 0 and seeds what is random about an item. Rank r takes the r-th of `world_size`
    equal slices of the global batch: how many processes share the work changes nothing.

    With `shares`, an epoch is as long, but each part of the dataset has a share of its draws, in proportion to the
    part's weight and exact to one draw; the draws of all parts are shuffled together. A part's own draws, over all
    epochs, are permutations of it laid end to end: each of its items is drawn once before any is drawn again.

    Args:
        n: items in the dataset.
        batch_size: items per step, over all ranks.
        seed: of the permutations, >= 0.
        rank, world_size: this process and how many there are.
        start: first step of the next iteration; set it before ``iter()`` to resume.
        shares: items of each part, int (k,), and its weight, above 0; None: every item once an epoch.

    Raises:
        VividError: no items, a batch that the ranks cannot share evenly, a negative seed or start, a part so light that
            an epoch would have no draw of it.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        shares: Sequence[tuple[np.ndarray, float]] | None = None,
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
        self._parts = None if shares is None else _apportioned(n, shares)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world_size
        epoch, order = -1, np.empty(0, np.int64)
        for step in count(self.start):
            first = step * self.batch_size + self.rank * share
            batch = []
            for draw in range(first, first + share):
                if draw // self.n != epoch:
                    epoch = draw // self.n
                    order = self._order(epoch)
                batch.append((int(order[draw % self.n]), draw))
            yield batch

    def _order(self, epoch: int) -> np.ndarray:
        """The items of an epoch, in the order of its draws."""
        rng = np.random.default_rng([self.seed, epoch])
        if self._parts is None:
            return rng.permutation(self.n)
        drawn = []
        for number, (items, k) in enumerate(self._parts, start=1):
            lap, first = divmod(epoch * k, len(items))
            laps = range(lap, lap + -(-(first + k) // len(items)))
            laid = [np.random.default_rng([self.seed, one, number]).permutation(items) for one in laps]
            drawn.append(np.concatenate(laid)[first : first + k])
        return rng.permutation(np.concatenate(drawn))


def _apportioned(n: int, shares: Sequence[tuple[np.ndarray, float]]) -> list[tuple[np.ndarray, int]]:
    """The items of each part and its number among n draws, by the largest remainder."""
    exact = n * np.array([weight for _, weight in shares]) / sum(weight for _, weight in shares)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    if not counts.all():
        raise VividError(
            f"sampler: a weight of {shares[int(np.argmin(counts))][1]:g} is less than one draw in an epoch of {n}; "
            "raise it, or set it to 0"
        )
    return [(items, int(count)) for (items, _), count in zip(shares, counts, strict=True)]


def collate(items: Sequence[dict[str, Any] | Skipped]) -> dict[str, Any]:
    """Items of an :class:`ImageDataset` → one batch.

    Returns:
        The items' keys, ``"image"`` (B, …) and ``"id"`` (list of B str) among them, where B counts the images that
        could be read, and ``"skipped"``, a list of :class:`Skipped`. Where no image could be read, only that. Tensors
        of one shape are stacked; what differs in shape, is no tensor or is None in some items stays a list.
    """
    good = [item for item in items if not isinstance(item, Skipped)]
    batch: dict[str, Any] = {"skipped": [item for item in items if isinstance(item, Skipped)]}
    for key in dict.fromkeys(key for item in good for key in item):
        batch[key] = _together([item.get(key) for item in good])
    return batch


def _together(values: list[Any]) -> Any:
    if all(isinstance(value, Drawn) for value in values):
        return Drawn.stack(values)
    if all(isinstance(value, torch.Tensor) for value in values) and len({value.shape for value in values}) == 1:
        return torch.stack(values)
    return values


class ImageLoader(DataLoader):
    """A PyTorch DataLoader that leaves the global random state alone and refuses a batch without any image.

    Raises:
        VividError: while iterating, in the main process: no image of a batch can be read.
    """

    def __init__(self, dataset: ImageDataset, **options: Any) -> None:
        # A loader draws from its generator whenever it is iterated; the global one belongs to the training run.
        super().__init__(dataset, collate_fn=collate, generator=torch.Generator(), **options)

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            if "image" not in batch:
                raise _nothing_readable(batch["skipped"])
            yield batch


class OrderedLoader(ImageLoader):
    """An :class:`ImageLoader` that goes on past a batch without any image; the next batch, or the last, lists it.

    Raises:
        VividError: while iterating, in the main process: no image at all can be read.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        held: dict[str, Any] | None = None
        lost: list[Skipped] = []
        for batch in DataLoader.__iter__(self):
            lost += batch["skipped"]
            if "image" in batch:
                if held is not None:
                    yield held
                held, lost = {**batch, "skipped": lost}, []
        if held is not None:
            held["skipped"] += lost
            yield held
        elif lost:
            raise _nothing_readable(lost)


def _nothing_readable(skipped: list[Skipped]) -> VividError:
    return VividError(f"none of {len(skipped)} images in a row can be read; the first: {skipped[0].reason}")


def image_loader(
    dataset: ImageDataset,
    batch_size: int,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    shares: Sequence[tuple[np.ndarray, float]] | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> ImageLoader:
    """Endless batches for training, in the order of :class:`ResumableBatchSampler`, which takes the arguments.

    To resume, set ``loader.batch_sampler.start`` before iterating. Workers change nothing but the speed.
    """
    order = ResumableBatchSampler(len(dataset), batch_size, seed=seed, rank=rank, world_size=world_size, shares=shares)
    return ImageLoader(dataset, batch_sampler=order, num_workers=num_workers, pin_memory=pin_memory)


def ordered_loader(
    dataset: ImageDataset, batch_size: int, *, rank: int = 0, world_size: int = 1, num_workers: int = 0
) -> OrderedLoader:
    """Every item once and in order, for evaluation, in batches of at most `batch_size`.

    Each rank gets one stretch of the dataset; nothing is repeated to make them even, and a rank may get nothing.

    Raises:
        VividError: a rank outside the world, a batch size under 1; while iterating as :class:`OrderedLoader`.
    """
    if batch_size < 1 or not 0 <= rank < world_size:
        raise VividError(f"ordered_loader: batch size {batch_size}, rank {rank} of {world_size} is impossible")
    mine = range(rank * len(dataset) // world_size, (rank + 1) * len(dataset) // world_size)
    order = BatchSampler(mine, batch_size, drop_last=False)
    return OrderedLoader(dataset, batch_sampler=order, num_workers=num_workers)
