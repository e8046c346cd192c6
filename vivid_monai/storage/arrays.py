"""A cache of arrays with a row per image (decoded images, features): in memory, or in files that are mapped.

An entry on disk is a folder named after its key, with the array (``array.npy``), the images that could not be read
(``unreadable.jsonl``) and a record (``entry.json``). While it is made, the folder ends in ``.part``, and a process that
is killed loses the rows since the last record and no more.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset
from tqdm import tqdm

from vivid_monai.errors import VividError
from vivid_monai.storage.files import disk_errors, entry_name, flush, made_by_one, whole_file
from vivid_monai.storage.skipped import Skipped

logger = logging.getLogger(__name__)

ARRAY, UNREADABLE, RECORD = "array.npy", "unreadable.jsonl", "entry.json"

Chunk = tuple[np.ndarray, Mapping[int, Skipped]]
"""The next rows (k, *shape), zeros where an image cannot be read; index → why not."""
Key = Callable[[], Mapping[str, Any]]
"""Gives all that the rows depend on, as JSON. Asked again when they are there: files may have changed meanwhile."""
Fill = Callable[[int], Iterable[Chunk]]
"""Makes the rows from an index on, in order, in chunks."""

_FORMAT = 2


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
        key: Key,
        fill: Fill,
        n: int,
        *,
        shape: Sequence[int] | None = None,
        dtype: np.dtype | type = np.float32,
        title: str = "images",
    ) -> Rows:
        """The entry of a key, made where it is not there yet.

        Args:
            n: images, those that cannot be read included.
            shape: of a row; None: that of the first chunk.
            dtype: of the array.
            title: what the rows are, for messages and the progress bar.

        Raises:
            VividError: no image can be read, rows differ in shape, files changed while they were read; the folder
                cannot be written, the disk is full or too small.
        """
        wanted = _complete(key, n, shape, dtype)

        def sound(rows: Rows) -> Rows:
            return _require_sound(rows, wanted, _complete(key, n, shape, dtype), title)

        if self.root is None:
            name = entry_name(wanted)
            if (held := _in_memory.get(name)) is None:
                memory = _Memory(n, dtype)
                _fill(memory, fill, n, title)
                held = _in_memory[name] = sound(memory.rows())
            return held
        entry = self.root / entry_name(wanted)
        if (found := self._open(entry)) is not None:
            return found
        waiting = f"{entry}: another process is making these {title}; waiting for it"
        with made_by_one(entry, waiting, option=self.option):
            if (found := self._open(entry, logger.warning)) is not None:
                return found
            with disk_errors(entry, option=self.option):
                shutil.rmtree(entry, ignore_errors=True)
            part = entry.with_name(f"{entry.name}.part")
            writer = _Writer(part, wanted, n, shape, np.dtype(dtype), self.option, self.seconds)
            if writer.done:
                logger.info(f"{part}: continued after {writer.done} of {n} {title}")
            _fill(writer, fill, n, title)
            try:
                sound(writer.rows())
            except VividError:
                shutil.rmtree(part, ignore_errors=True)
                raise
            with disk_errors(part, option=self.option):
                part.replace(entry)
            return open_rows(entry)

    def _open(self, entry: Path, report: Callable[[str], Any] = lambda _: None) -> Rows | None:
        if not entry.exists():
            return None
        try:
            return open_rows(entry, checksum=self.checksum)
        except VividError as error:
            report(f"{error}; it is made again")
            return None


def open_rows(folder: Path, *, checksum: bool = False) -> Rows:
    """Map a finished entry into memory.

    Raises:
        VividError: it is not what was written.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        array = np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False)
        unreadable = _read_unreadable(folder / UNREADABLE, record["done"])
        whole = [len(array), *array.shape[1:]] == [record["done"], *record["shape"]] and array.dtype == record["dtype"]
        if not whole or len(array) != record["n"] or len(unreadable) != record["unreadable"]:
            raise ValueError("its files do not belong together")
        if checksum and zlib.crc32(array) != record["crc32"]:
            raise ValueError("its values are not those that were written")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise VividError(f"{folder}: damaged entry of a cache ({error})") from error
    return Rows(array, unreadable, folder)


_in_memory: WeakValueDictionary[str, Rows] = WeakValueDictionary()


class _Memory:
    """Rows that are kept in memory."""

    def __init__(self, n: int, dtype: Any) -> None:
        self.n, self.dtype, self.done = n, dtype, 0
        self.array: np.ndarray | None = None
        self.unreadable: dict[int, Skipped] = {}

    def add(self, rows: np.ndarray, unreadable: Mapping[int, Skipped]) -> None:
        if self.array is None:
            self.array = np.zeros((self.n, *rows.shape[1:]), self.dtype)
        self.array[self.done : self.done + len(rows)] = rows
        self.unreadable |= unreadable
        self.done += len(rows)

    def rows(self) -> Rows:
        assert self.array is not None
        return Rows(self.array, self.unreadable)


class _Writer:
    """Rows that are appended to the ``.part`` folder of an entry.

    Rows and lines reach the disk before the record counts them. Rows are written with ordinary writes, since a write
    into mapped memory cannot report a full disk.

    Attributes:
        done: images so far, those that cannot be read included.

    Raises:
        VividError: the folder cannot be written, the disk has not enough room.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        n: int,
        shape: Sequence[int] | None,
        dtype: np.dtype,
        option: str,
        seconds: float,
    ) -> None:
        self.folder, self.key, self.n, self.dtype = folder, dict(key), n, dtype
        self.shape = None if shape is None else tuple(shape)
        self.option, self.seconds = option, seconds
        self.done, self.unreadable, self.crc32 = 0, 0, 0
        with disk_errors(folder, option=option):
            if not self._restore():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
            if self.shape is not None:
                self._begin(self.shape)
        self._recorded = time.monotonic()

    def add(self, rows: np.ndarray, unreadable: Mapping[int, Skipped]) -> None:
        """Append the rows of the next images."""
        lines = [json.dumps([index, one.path, one.reason]) + "\n" for index, one in unreadable.items()]
        values = np.ascontiguousarray(rows, self.dtype).tobytes()
        with disk_errors(self.folder, option=self.option):
            if self.shape is None:
                self._begin(rows.shape[1:])
            with (self.folder / ARRAY).open("ab") as file:
                file.write(values)
            with (self.folder / UNREADABLE).open("ab") as file:
                file.write("".join(lines).encode())
        self.done += len(rows)
        self.unreadable += len(unreadable)
        self.crc32 = zlib.crc32(values, self.crc32)
        if time.monotonic() - self._recorded >= self.seconds:
            self._record()

    def rows(self) -> Rows:
        """Count what was appended as done, and map it."""
        self._record()
        return open_rows(self.folder)

    def _record(self) -> None:
        with disk_errors(self.folder, option=self.option):
            for name in (ARRAY, UNREADABLE):
                with (self.folder / name).open("ab") as file:
                    flush(file)
        names = ("key", "n", "shape", "done", "unreadable", "crc32")
        record = {"dtype": self.dtype.str} | {name: getattr(self, name) for name in names}
        with whole_file(self.folder / RECORD) as part:
            part.write_text(json.dumps(record))
        self._recorded = time.monotonic()

    def _begin(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        row = int(np.prod(self.shape)) * self.dtype.itemsize
        # Now: otherwise the first write that fails would tell it, hours later.
        needed, free = row * (self.n - self.done), shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        if not self.done:
            (self.folder / ARRAY).write_bytes(self._header())
            (self.folder / UNREADABLE).touch()

    def _restore(self) -> bool:
        try:
            record = json.loads((self.folder / RECORD).read_text())
            shape = tuple(record["shape"])
            if record["key"] != self.key or record["n"] != self.n or record["dtype"] != self.dtype.str:
                return False
            if self.shape not in (None, shape):
                return False
            unreadable = _read_unreadable(self.folder / UNREADABLE, record["done"])
            if len(unreadable) != record["unreadable"]:
                return False
            self.shape = shape
            header, left = self._header(), int(np.prod(shape)) * self.dtype.itemsize * record["done"]
            crc32 = 0
            with (self.folder / ARRAY).open("rb+") as file:
                if file.read(len(header)) != header:
                    return False
                end = len(header) + left
                while left:
                    if not (some := file.read(min(left, 1 << 24))):
                        return False
                    crc32, left = zlib.crc32(some, crc32), left - len(some)
                if crc32 != record["crc32"]:
                    return False
                file.truncate(end)  # what follows are rows that the record does not count
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self.done, self.unreadable, self.crc32 = record["done"], record["unreadable"], crc32
        lines = [json.dumps([index, one.path, one.reason]) + "\n" for index, one in unreadable.items()]
        with whole_file(self.folder / UNREADABLE) as part:
            part.write_text("".join(lines), encoding="utf-8")
        return True

    def _header(self) -> bytes:
        header = io.BytesIO()
        form = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.n, *(self.shape or ()))}
        np.lib.format.write_array_header_1_0(header, form)
        return header.getvalue()


def _fill(sink: "_Memory | _Writer", fill: Fill, n: int, title: str) -> None:
    if sink.done == n:
        return
    with tqdm(desc=title, total=n, initial=sink.done, unit="image", leave=False) as bar:
        for rows, unreadable in fill(sink.done):
            sink.add(rows, unreadable)
            bar.update(len(rows))
    if sink.done != n:
        raise VividError(f"{title}: the pass ended after {sink.done} of {n} images")


def _complete(key: Key, n: int, shape: Sequence[int] | None, dtype: Any) -> dict[str, Any]:
    form = {"format": _FORMAT, "n": n, "shape": shape and list(shape), "dtype": np.dtype(dtype).str}
    return json.loads(json.dumps({**form, **key()}))


def _require_sound(rows: Rows, wanted: Mapping[str, Any], now: Mapping[str, Any], title: str) -> Rows:
    if len(rows.unreadable) == len(rows.array):
        raise VividError(f"none of {len(rows.array)} images can be read; the first: {rows.unreadable[0].reason}")
    if now != wanted:
        raise VividError(f"{title}: image files changed while they were read; run the same command again")
    return rows


def _read_unreadable(path: Path, done: int) -> dict[int, Skipped]:
    """Index → why, of the images before `done`; a killed process may have left lines beyond."""
    found = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                break
            index, image, reason = json.loads(line)
            if index < done:
                found[index] = Skipped(image, reason)
    return found


def fingerprint(files: Iterable[tuple[str, Any]], n: int) -> str:
    """SHA-256 over `n` pairs of a path and what else is asked of it (a slice), with each file's size and times.

    The times are those of modification and status change: a file replaced in place changes its ctime even where size
    and modification time are kept, as archives keep them; so does one whose rights change, which may have made it
    readable. Of a folder, every file in it counts.
    """
    digest = hashlib.sha256()
    for path, place in tqdm(files, "looking at image files", n, unit="file", delay=2, leave=False):
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
    indices = iter(todo)
    for images in _read_chunks(read, todo, workers):
        rows, skipped = np.zeros((len(images), *shape), dtype), {}
        for row, image, index in zip(rows, images, indices, strict=False):
            if isinstance(image, Skipped):
                skipped[index] = image
            elif image.shape != tuple(shape):
                raise VividError(
                    f"image {index} is {image.shape}, others are {tuple(shape)}: one cache cannot hold both"
                )
            else:
                row[...] = image
        yield rows, skipped


def _read_chunks(read: Any, todo: range, workers: int) -> Iterator[list[np.ndarray | Skipped]]:
    if workers:
        order = BatchSampler(todo, _CHUNK, drop_last=False)
        # A generator of its own: the global random state belongs to whoever asks for the images.
        yield from DataLoader(
            _Images(read), batch_sampler=order, num_workers=workers, collate_fn=_arrays, generator=torch.Generator()
        )
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for first in range(0, len(todo), _CHUNK):
                yield _arrays(list(pool.map(read, todo[first : first + _CHUNK])))


class _Images(Dataset[torch.Tensor | Skipped]):
    """What a worker process reads."""

    def __init__(self, read: Callable[[int], torch.Tensor | Skipped]) -> None:
        self.read = read

    def __getitem__(self, index: int) -> torch.Tensor | Skipped:
        return self.read(index)


def _arrays(images: Sequence[torch.Tensor | Skipped]) -> list[np.ndarray | Skipped]:
    # Tensors would travel from a worker in shared memory, each with a file descriptor, and a machine has few of them.
    return [image if isinstance(image, Skipped) else image.numpy() for image in images]
