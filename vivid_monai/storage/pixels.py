"""Decoded images as uint8: in memory, or in one file on disk that is built once and mapped into memory."""

import csv
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset
from tqdm import tqdm

from vivid_monai.errors import VividError
from vivid_monai.storage.files import disk_errors, entry_name, flush, made_by_one, tell, versions, whole_file


@dataclass(frozen=True)
class Skipped:
    """One image that could not be read, and why."""

    path: str
    reason: str


class SkipReport:
    """Collects what was skipped, each path once with the number of times it was met.

    ``len()`` is the number of different paths.
    """

    def __init__(self) -> None:
        self.counts: dict[Skipped, int] = {}

    def __len__(self) -> int:
        return len({skipped.path for skipped in self.counts})

    def add(self, skipped: Iterable[Skipped]) -> list[Skipped]:
        """Count `skipped` (a batch's ``"skipped"``) and return those met for the first time, to be told once."""
        new = []
        for one in skipped:
            if one not in self.counts:
                new.append(one)
            self.counts[one] = self.counts.get(one, 0) + 1
        return new

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file with columns path, reason, times; whole or not at all.

        Raises:
            VividError: the file cannot be written.
        """
        with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["path", "reason", "times"])
            rows.writerows([one.path, one.reason, times] for one, times in self.counts.items())


PIXELS, UNREADABLE, RECORD = "pixels.npy", "unreadable.jsonl", "entry.json"


class Pixels:
    """Decoded images, by index: uint8 (C, H, W), or :class:`Skipped` for one that could not be read.

    Attributes:
        array: uint8 (N, C, H, W), in memory or mapped.
        unreadable: index → why.
        folder: of the entry on disk; None: there is none. Pickled, an entry is its folder's name, not its pixels.
    """

    def __init__(self, array: np.ndarray, unreadable: Mapping[int, Skipped], folder: Path | None = None) -> None:
        self.array, self.unreadable, self.folder = array, dict(unreadable), folder

    def __getitem__(self, index: int) -> torch.Tensor | Skipped:
        return self.unreadable.get(index) or torch.from_numpy(np.array(self.array[index]))

    def __reduce__(self) -> Any:
        return (Pixels, (self.array, self.unreadable)) if self.folder is None else (open_pixels, (self.folder,))


def open_pixels(folder: Path) -> Pixels:
    """Map a finished entry into memory.

    Raises:
        VividError: it is not what was written.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        array = np.load(folder / PIXELS, mmap_mode="r", allow_pickle=False)
        unreadable = read_unreadable(folder / UNREADABLE, record["done"])
        whole = array.dtype == np.uint8 and list(array.shape) == record["shape"] and len(array) == record["done"]
        if not whole or len(unreadable) != record["unreadable"]:
            raise ValueError("its files do not belong together")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise VividError(
            f"{folder}: damaged entry of a cache ({error}); delete this folder, and the same command makes it again"
        ) from error
    return Pixels(array, unreadable, folder)


def read_unreadable(path: Path, done: int) -> dict[int, Skipped]:
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


OPTION = "--cache"
_SECONDS = 2.0  # between two records of what is done


class PixelWriter:
    """Appends rows to the ``.part`` folder of an entry.

    Rows and lines reach the disk before the record counts them, so a killed process loses the last seconds and no
    more. Rows are written with ordinary writes, since a write into mapped memory cannot report a full disk.

    Args:
        folder: of the entry in the making.
        key: what the images depend on, JSON.
        shape: (N, C, H, W) of all images.

    Attributes:
        done: images so far, those that cannot be read included.
        unreadable: how many of them cannot be read.

    Raises:
        VividError: the folder cannot be written, the disk has not enough room.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], shape: Sequence[int]) -> None:
        self.folder, self.key, self.shape = folder, dict(key), tuple(shape)
        self.done, self.unreadable = 0, 0
        with disk_errors(folder, option=OPTION):
            if not self._restore():
                self._begin()
            self._require_room()
        self._recorded = time.monotonic()

    def add(self, rows: np.ndarray, skipped: Mapping[int, Skipped]) -> None:
        """Append the next images: uint8 (k, C, H, W), index → why for those that could not be read."""
        lines = [json.dumps([index, one.path, one.reason]) + "\n" for index, one in skipped.items()]
        with disk_errors(self.folder, option=OPTION):
            with (self.folder / PIXELS).open("ab") as file:
                file.write(rows.tobytes())
            with (self.folder / UNREADABLE).open("ab") as file:
                file.write("".join(lines).encode())
        self.done += len(rows)
        self.unreadable += len(skipped)
        if time.monotonic() - self._recorded > _SECONDS:
            self.record()

    def record(self) -> None:
        """Count what was appended as done."""
        with disk_errors(self.folder, option=OPTION):
            for name in (PIXELS, UNREADABLE):
                with (self.folder / name).open("ab") as file:
                    flush(file)
        told = {"key": self.key, "shape": self.shape, "done": self.done, "unreadable": self.unreadable}
        with whole_file(self.folder / RECORD) as part:
            part.write_text(json.dumps(told))
        self._recorded = time.monotonic()

    def _begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.folder / PIXELS).write_bytes(self._header())
        (self.folder / UNREADABLE).touch()

    def _restore(self) -> bool:
        try:
            record = json.loads((self.folder / RECORD).read_text())
            if record["key"] != self.key or record["shape"] != list(self.shape):
                return False
            unreadable = read_unreadable(self.folder / UNREADABLE, record["done"])
            header, size = self._header(), self._row() * record["done"]
            with (self.folder / PIXELS).open("rb+") as file:
                whole = file.read(len(header)) == header and file.seek(0, io.SEEK_END) >= len(header) + size
                if not whole or len(unreadable) != record["unreadable"]:
                    return False
                file.truncate(len(header) + size)  # what follows are images that the record does not count
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self.done, self.unreadable = record["done"], record["unreadable"]
        lines = [json.dumps([index, one.path, one.reason]) + "\n" for index, one in unreadable.items()]
        with whole_file(self.folder / UNREADABLE) as part:
            part.write_text("".join(lines), encoding="utf-8")
        return True

    def _header(self) -> bytes:
        header = io.BytesIO()
        form = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, form)
        return header.getvalue()

    def _row(self) -> int:
        return int(np.prod(self.shape[1:]))

    def _require_room(self) -> None:
        # A run would be told by the first write that fails, hours later.
        needed, free = self._row() * (self.shape[0] - self.done), shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


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


PACKAGES = (
    *("vivid-monai", "numpy", "torch", "monai", "pillow", "pydicom", "nibabel"),
    *("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"),
)
"""What stands between an image file and its bytes; another version of one is another entry."""
Key = Callable[[], Mapping[str, Any]]
"""Gives what the images depend on, as JSON. Asked again when they are read: files that changed meanwhile are told."""

_FORMAT = 1
_in_memory: WeakValueDictionary[str, Pixels] = WeakValueDictionary()


def pixels_in_memory(key: Key, read: Read, shape: Sequence[int], *, workers: int = 0) -> Pixels:
    """All images, read now unless this process still holds those of the same key, as another data set of it may.

    Args:
        key: see :data:`Key`.
        read: reads one image.
        shape: (N, C, H, W) of all images.
        workers: processes that read; 0: threads of this process.

    Raises:
        VividError: none can be read, one is of another shape, files changed while they were read.
    """
    wanted = _complete(key, shape)
    name = entry_name(wanted)
    pixels = _in_memory.get(name)
    if pixels is None:
        pixels = Pixels(np.zeros(shape, np.uint8), {})
        done = 0
        with tqdm(desc="images into memory", total=shape[0], unit="image", leave=False) as bar:
            for rows, skipped in decoded(read, tuple(shape[1:]), range(shape[0]), workers=workers):
                pixels.array[done : done + len(rows)] = rows
                pixels.unreadable |= skipped
                done += len(rows)
                bar.update(len(rows))
        _require_sound(wanted, key, shape, pixels.unreadable)
        _in_memory[name] = pixels
    return pixels


def pixels_on_disk(root: Path | str, key: Key, read: Read, shape: Sequence[int], *, workers: int = 0) -> Pixels:
    """The entry of a key, built where it is not there yet.

    A process that finds another one building it waits. One that was killed is gone on with.

    Args:
        root: folder of all entries; made where missing.
        key, read, shape, workers: as of :func:`pixels_in_memory`.

    Raises:
        VividError: the folder cannot be written, the disk is full, an entry is damaged; as :func:`pixels_in_memory`.
    """
    wanted = _complete(key, shape)
    entry = Path(root) / entry_name(wanted)
    if not entry.exists():
        waiting = f"{entry}: another process is decoding these images; waiting for it"
        with made_by_one(entry, waiting, option=OPTION):
            if not entry.exists():
                part = entry.with_name(f"{entry.name}.part")
                _build(part, wanted, read, shape, workers)
                try:
                    _require_sound(wanted, key, shape, open_pixels(part).unreadable)
                except VividError:
                    shutil.rmtree(part, ignore_errors=True)
                    raise
                with disk_errors(part, option=OPTION):
                    part.replace(entry)
    return open_pixels(entry)


def fingerprint(files: Iterable[tuple[str, int | None]], n: int) -> str:
    """SHA-256 over `n` pairs of path and slice with each file's size and times of modification and status change.

    A file replaced in place changes its ctime even where size and modification time are kept, as archives keep them;
    so does one whose rights change, which may have made it readable.
    """
    digest = hashlib.sha256()
    for path, place in tqdm(files, "looking at image files", n, unit="file", delay=2, leave=False):
        try:
            status = os.stat(path)
            file = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        except OSError:
            file = "none"
        digest.update(f"{path}\0{place}\0{file}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _complete(key: Key, shape: Sequence[int]) -> dict[str, Any]:
    return json.loads(json.dumps({"format": _FORMAT, "shape": list(shape), **key(), "versions": versions(PACKAGES)}))


def _require_sound(
    wanted: Mapping[str, Any], key: Key, shape: Sequence[int], unreadable: Mapping[int, Skipped]
) -> None:
    if len(unreadable) == shape[0]:
        raise VividError(f"none of {shape[0]} images can be read; the first: {unreadable[0].reason}")
    if _complete(key, shape) != wanted:
        raise VividError("image files changed while they were read; run the same command again")


def _build(part: Path, wanted: Mapping[str, Any], read: Read, shape: Sequence[int], workers: int) -> None:
    writer, n = PixelWriter(part, wanted, shape), shape[0]
    if writer.done:
        tell(f"{part}: going on after {writer.done} of {n} images")
    with tqdm(desc="images into the cache", total=n, initial=writer.done, unit="image", leave=False) as bar:
        for rows, skipped in decoded(read, tuple(shape[1:]), range(writer.done, n), workers=workers):
            writer.add(rows, skipped)
            bar.update(len(rows))
    writer.record()
