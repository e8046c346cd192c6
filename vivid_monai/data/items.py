"""Rows of a manifest as the dicts that data sets take, each made when it is asked for."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from vivid_monai.errors import VividError
from vivid_monai.storage.arrow import ArrowFile

_WORDS = ("image", "id", "patient_id", "slice")
_PATHS = {"image", "mask"}
_CHUNK = 4096


class Items(Sequence[dict[str, Any]]):
    """Dicts of image (path), states (int64 (F,)), id, patient_id, and slice and other columns where they are not null.

    A slice of it is of the same kind and copies nothing.

    Args:
        table: columns of `manifest_schema`.
        states: the names of the state columns, in order.
        columns: further columns that an item holds.
        root: what relative paths of images and masks start from.
        file: that the table is mapped from; a pickle then holds its name alone. None: the table is in memory.

    Raises:
        VividError: when unpickled: the file has changed since.
    """

    def __init__(
        self,
        table: pa.Table,
        states: Sequence[str],
        *,
        root: str,
        columns: Sequence[str] = (),
        file: ArrowFile | None = None,
    ) -> None:
        self._states, self._root, self._file = list(states), root, file
        self._names = list(dict.fromkeys([*_WORDS, *columns]))
        self._rows = range(table.num_rows)
        self._hold(table)

    def _hold(self, table: pa.Table) -> None:
        self._table = table.select(list(dict.fromkeys([*self._names, *self._states])))
        batches = self._table.to_batches()
        self._ends = list(accumulate(len(batch) for batch in batches))
        self._words = [[batch.column(name) for name in self._names] for batch in batches]
        self._codes = [[batch.column(name).to_numpy() for name in self._states] for batch in batches]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            part = object.__new__(type(self))
            part.__dict__ = {**self.__dict__, "_rows": self._rows[index]}
            return part
        row = self._rows[index]
        batch = bisect_right(self._ends, row)
        row -= self._ends[batch]  # from the batch's end, which Arrow and NumPy count from as well
        words = [column[row].as_py() for column in self._words[batch]]
        states = np.array([column[row] for column in self._codes[batch]], np.int64)
        return self._item(states, *words)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._rows.step != 1:
            yield from (self[index] for index in range(len(self)))
            return
        for batch in self._table.slice(self._rows.start, len(self)).to_batches(max_chunksize=_CHUNK):
            states = np.empty((len(batch), len(self._states)), np.int64)
            for position, name in enumerate(self._states):
                states[:, position] = batch.column(name).to_numpy()
            yield from map(self._item, states, *(batch.column(name).to_pylist() for name in self._names))

    def _item(self, states: np.ndarray, *words: Any) -> dict[str, Any]:
        item = {name: word for name, word in zip(self._names, words, strict=True) if word is not None}
        for name in _PATHS & item.keys():
            item[name] = os.path.join(self._root, item[name])
        return item | {"states": states}

    def __getstate__(self) -> dict[str, Any]:
        names = ["_states", "_names", "_root", "_file", "_rows", *(["_table"] if self._file is None else [])]
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            if (table := self._file.open()) is None:
                raise VividError(f"{self._file.path}: has changed or gone since it was opened; load the manifest again")
            self._table = table
        self._hold(self._table)
