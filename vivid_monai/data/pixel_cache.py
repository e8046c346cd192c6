"""Decoded images as uint8: in memory, or in one file on disk that is built once and mapped into memory."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from tqdm import tqdm

from vivid_monai.data.decoding import Read, decoded
from vivid_monai.data.pixel_writer import OPTION, PixelWriter
from vivid_monai.data.pixels import Pixels, open_pixels
from vivid_monai.data.skipped import Skipped
from vivid_monai.entries import disk_errors, entry_name, made_by_one, tell, versions
from vivid_monai.errors import VividError

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
