"""As many batches for every process of a run as for any other."""

from collections.abc import Iterator
from typing import Any

import ignite.distributed as idist
from torch.utils.data import DataLoader

from vivid_monai.errors import VividError


class InStep:
    """The batches of a loader, and padding as long as another process still has batches.

    A sharded teacher is gathered from all processes whenever it runs, so all must run it equally often: a process that
    runs out of validation images would leave the others waiting for its part.

    Args:
        loader: of this process.

    Yields:
        The loader's batches, then its last one again with ``"padding": True`` up to the number of batches of the
        process that has most.

    Raises:
        VividError: while iterating: this process has no batch at all, and so nothing to repeat.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        self._length = int(idist.all_reduce(len(loader), "MAX"))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batch: dict[str, Any] | None = None
        given = 0
        for batch in self._loader:
            yield batch
            given += 1
        if batch is None:
            raise VividError("a process has no validation image: use fewer processes, or raise --val_images")
        for _ in range(self._length - given):
            yield {**batch, "skipped": [], "padding": True}
