"""Entries of a cache on disk: named after what they are made from, made by one process while others wait."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from vivid_monai.errors import VividError


def entry_name(key: Mapping[str, Any]) -> str:
    """Name of the entry of a key (JSON): 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Package → version, of those that are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextmanager
def made_by_one(entry: Path, waiting: str, *, option: str) -> Iterator[None]:
    """Hold the lock of an entry; its folder's parent is made where it is missing.

    Args:
        entry: the folder that is going to be there.
        waiting: told on stderr where another process holds the lock.
        option: as of :func:`disk_errors`.

    Raises:
        VividError: the parent cannot be written.
    """
    with disk_errors(entry.parent, option=option):
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.with_name(f"{entry.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(waiting)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(path: Path, *, option: str) -> Iterator[None]:
    """Errors of the file system, told as a :class:`VividError` that names the option that says where the cache is."""
    try:
        yield
    except OSError as error:
        raise VividError(
            f"{path}: cannot be stored: {error}. Make room, or choose another cache folder ({option}); what is done "
            "is kept, and the same command goes on after it"
        ) from error


def flush(file: BinaryIO) -> None:
    """Return when what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def tell(message: str) -> None:
    """A line on stderr; an empty title in front of it is left out."""
    print(message.removeprefix(": "), file=sys.stderr)
