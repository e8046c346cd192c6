"""A cache of arrays with a row per image (decoded images, features): in memory, or in files that are mapped.

An entry on disk is a folder named after its key, with the array (``array.npy``) and a record (``entry.json``) of what
is done and which images could not be read. While it is made, the folder ends in ``.part``, and a process that is killed
loses the rows since the last record and no more.
"""

import json
import logging
import os
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch.utils.data import BatchSampler, DataLoader, Dataset

from vivid_monai.errors import VividError
from vivid_monai.logs import progress
from vivid_monai.storage.files import disk_errors, entry_name, made_by_one, whole_file
from vivid_monai.storage.skipped import Skipped

logger = logging.getLogger(__name__)

ARRAY, RECORD = "array.npy", "entry.json"

Chunk = tuple[np.ndarray, Mapping[int, Skipped]]
"""The next rows (k, *shape), zeros where an image cannot be read; index → why not."""


class Rows:
    """Rows by index: a tensor of its own for each, or :class:`Skipped` for an image that could not be read.

    Attributes:
        array: (N, *shape), in memory or mapped; zeros where an image could not be read.
        unreadable: index → why.
        folder: of the entry on disk; None: there is none. Pickled, an entry is its folder's name, not its rows.
    """

    def __init__(self, array: np.ndarray, unreadable: Mapping[int, Skipped], folder: Path | None = None) -> None:
        self.array, self.unreadable, self.folder = array, dict(unreadable), folder

    def __getitem__(self, index: int) -> torch.Tensor | Skipped:
        return self.unreadable.get(index) or torch.from_numpy(np.array(self.array[index]))

    def __reduce__(self) -> Any:
        return (Rows, (self.array, self.unreadable)) if self.folder is None else (open_rows, (self.folder,))


_in_memory: WeakValueDictionary[str, Rows] = WeakValueDictionary()


class ArrayCache:
    """Arrays by key, made once.

    A process that finds another one making an entry waits for it. An entry that was begun is continued, one that is
    damaged is made again; both are told.

    Args:
        root: folder of all entries, made where missing; None: in memory, where this process finds an entry again as
            long as somebody holds it.
        option: what the user calls the folder, for messages.
        checksum: compare an entry with its checksum whenever it is opened, which reads all of it.
        seconds: between two records of what is done.
    """

    def __init__(
        self, root: Path | str | None, *, option: str = "--cache", checksum: bool = False, seconds: float = 2.0
    ) -> None:
        self.root = None if root is None else Path(root)
        self.option, self.checksum, self.seconds = option, checksum, seconds

    def get(
        self,
        key: Callable[[], Mapping[str, Any]],
        fill: Callable[[int], Iterable[Chunk]],
        n: int,
        *,
        shape: Sequence[int],
        dtype: np.dtype | type = np.float32,
        title: str = "images",
    ) -> Rows:
        """The entry of a key, made where it is not there yet.

        Args:
            key: gives all that the rows depend on, as JSON. Asked again when they are there: files may have changed.
            fill: makes the rows from an index on, in order, in chunks.
            n: images, those that cannot be read included.
            shape, dtype: of a row.
            title: what the rows are, for messages and the progress bar.

        Raises:
            VividError: no image can be read, files changed while they were read; the folder cannot be written, the
                disk is full or too small.
        """

        def whole_key() -> dict[str, Any]:
            form = {"format": 2, "n": n, "shape": list(shape), "dtype": np.dtype(dtype).str}
            return json.loads(json.dumps({**form, **key()}))

        def chunks(done: int) -> Iterator[tuple[np.ndarray, Mapping[int, Skipped]]]:
            with progress(desc=title, total=n, initial=done, unit="image", leave=False) as bar:
                for rows, unreadable in fill(done) if done < n else ():
                    yield rows, unreadable
                    bar.update(len(rows))
                    done += len(rows)
            if done != n:
                raise VividError(f"{title}: the pass ended after {done} of {n} images")

        def require_sound(unreadable: Mapping[int, Skipped]) -> None:
            if len(unreadable) == n:
                raise VividError(f"none of {n} images can be read; the first: {unreadable[0].reason}")
            if whole_key() != wanted:
                raise VividError(f"{title}: image files changed while they were read; run the same command again")

        wanted = whole_key()
        name = entry_name(wanted)
        if self.root is None:
            if (held := _in_memory.get(name)) is None:
                held, done = Rows(np.zeros((n, *shape), dtype), {}), 0
                for rows, unreadable in chunks(0):
                    held.array[done : done + len(rows)] = rows
                    held.unreadable |= unreadable
                    done += len(rows)
                require_sound(held.unreadable)
                _in_memory[name] = held
            return held
        entry, part = self.root / name, self.root / f"{name}.part"
        with suppress(VividError):
            return open_rows(entry, checksum=self.checksum)
        waiting = f"{entry}: another process is making these {title}; waiting for it"
        with made_by_one(entry, waiting, option=self.option):
            try:
                return open_rows(entry, checksum=self.checksum)
            except VividError as error:
                if entry.exists():
                    logger.warning(f"{error}; it is made again")
            with disk_errors(part, option=self.option):
                shutil.rmtree(entry, ignore_errors=True)
                writer = _Writer(part, wanted, self.seconds)
            if writer.done:
                logger.info(f"{part}: continued after {writer.done} of {n} {title}")
            for rows, unreadable in chunks(writer.done):
                with disk_errors(part, option=self.option):
                    writer.add(rows, unreadable)
            with disk_errors(part, option=self.option):
                writer.record()
            try:
                require_sound(open_rows(part).unreadable)
            except VividError:
                shutil.rmtree(part, ignore_errors=True)
                raise
            with disk_errors(part, option=self.option):
                part.replace(entry)
            return open_rows(entry)


_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError)


def open_rows(folder: Path, *, checksum: bool = False) -> Rows:
    """Map a finished entry into memory.

    Raises:
        VividError: it is not what was written.
    """
    try:
        array, record = _load(folder)
        if record["done"] != len(array):
            raise ValueError("it is not complete")
        if checksum and zlib.crc32(array.data) != record["crc32"]:
            raise ValueError("its values are not those that were written")
        # Older records have the number of images here: where it is 0, they are read as well.
        unreadable = {index: Skipped(path, reason) for index, path, reason in record["unreadable"] or ()}
    except _DAMAGED as error:
        raise VividError(f"{folder}: damaged entry of a cache ({error})") from error
    return Rows(array, unreadable, folder)


def _load(folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    record = json.loads((folder / RECORD).read_text())
    array = np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False)
    key = record["key"]
    if [*array.shape] != [key["n"], *key["shape"]] or array.dtype != key["dtype"]:
        raise ValueError("its files do not belong together")
    return array, record


class _Writer:
    """Fills the ``.part`` folder of an entry, or goes on with what its record counts.

    Rows reach the disk before the record counts them. They are written with ordinary writes, since a write into mapped
    memory cannot report a full disk.

    Attributes:
        done: images so far, those that cannot be read included.

    Raises:
        OSError: the folder cannot be written, the disk has not enough room.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], seconds: float) -> None:
        self.folder, self.key, self.seconds = folder, key, seconds
        self.done, self.crc32, self.unreadable = 0, 0, []
        with suppress(*_DAMAGED):
            array, record = _load(folder)
            if record["key"] == key and zlib.crc32(array[: record["done"]].data) == record["crc32"]:
                self.done, self.crc32, self.unreadable = record["done"], record["crc32"], record["unreadable"]
        if not self.done:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self._row = int(np.prod(key["shape"])) * np.dtype(key["dtype"]).itemsize
        # Now: otherwise the first write that fails would tell it, hours later.
        needed, free = self._row * (key["n"] - self.done), shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        if not self.done:
            open_memmap(folder / ARRAY, "w+", key["dtype"], (key["n"], *key["shape"]))
        self._recorded = time.monotonic()

    def add(self, rows: np.ndarray, unreadable: Mapping[int, Skipped]) -> None:
        """Write the rows of the next images."""
        values = np.ascontiguousarray(rows, self.key["dtype"]).tobytes()
        with (self.folder / ARRAY).open("rb+") as file:
            file.seek(-self._row * (self.key["n"] - self.done), os.SEEK_END)
            file.write(values)
        self.done += len(rows)
        self.crc32 = zlib.crc32(values, self.crc32)
        self.unreadable += [[index, one.path, one.reason] for index, one in unreadable.items()]
        if time.monotonic() - self._recorded >= self.seconds:
            self.record()

    def record(self) -> None:
        """Count what was written as done."""
        with (self.folder / ARRAY).open("rb") as file:
            os.fsync(file.fileno())
        with whole_file(self.folder / RECORD) as part:
            part.write_text(json.dumps({name: getattr(self, name) for name in ("key", "done", "crc32", "unreadable")}))
        self._recorded = time.monotonic()


def fingerprint(files: Iterable[tuple[str, Any]], n: int) -> str:
    """SHA-256 over `n` pairs of a path and what else is asked of it (a slice), with each file's size and times.

    The times are those of modification and status change: a file replaced in place changes its ctime even where size
    and modification time are kept, as archives keep them; so does one whose rights change, which may have made it
    readable. Of a folder, every file in it counts.
    """
    digest = sha256()
    for path, place in progress(files, "looking at image files", n, unit="file", delay=2, leave=False):
        digest.update(f"{path}\0{place}\0{_state(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _state(path: str | os.PathLike[str]) -> str:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return " ".join(f"{one.name} {_state(one)}" for one in sorted(os.scandir(path), key=lambda one: one.name))
    except OSError:
        return "none"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


_CHUNK = 64  # images: 3 MB at 224 px travel from a worker at once


def in_chunks(
    read: Callable[[int], torch.Tensor | Skipped], shape: Sequence[int], dtype: Any, todo: range, *, workers: int = 0
) -> Iterator[Chunk]:
    """Rows of the images of `todo`, in order, read by several at once.

    Args:
        read: index → tensor of `shape`, or why not. Where worker processes are started afresh, it must be picklable.
        workers: processes that read; 0: threads of this process.

    Raises:
        VividError: an image of another shape.
    """
    for indices, images in _read_chunks(_Arrays(read), BatchSampler(todo, _CHUNK, drop_last=False), workers):
        rows, skipped = np.zeros((len(images), *shape), dtype), {}
        for row, image, index in zip(rows, images, indices, strict=True):
            if isinstance(image, Skipped):
                skipped[index] = image
            elif image.shape != tuple(shape):
                raise VividError(
                    f"image {index} is {image.shape}, others are {tuple(shape)}: one cache cannot hold both"
                )
            else:
                row[...] = image
        yield rows, skipped


class _Arrays(Dataset[np.ndarray | Skipped]):
    """What a worker process reads. Tensors would travel in shared memory, each with a file descriptor of few."""

    def __init__(self, read: Callable[[int], torch.Tensor | Skipped]) -> None:
        self.read = read

    def __getitem__(self, index: int) -> np.ndarray | Skipped:
        image = self.read(index)
        return image if isinstance(image, Skipped) else image.numpy()


def _read_chunks(images: _Arrays, order: BatchSampler, workers: int) -> Iterator[tuple[list[int], list[Any]]]:
    if workers:
        # A generator of its own: the global random state belongs to whoever asks for the images.
        options: dict[str, Any] = {"num_workers": workers, "collate_fn": list, "generator": torch.Generator()}
        yield from zip(order, DataLoader(images, batch_sampler=order, **options), strict=True)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for indices in order:
                yield indices, list(pool.map(images.__getitem__, indices))
