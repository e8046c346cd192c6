"""Files that are written whole or not at all; entries of a cache: their names, and one process that makes them."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vivid_monai.errors import VividError

logger = logging.getLogger(__name__)


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of a temporary file in the folder of `path` (made where missing), which takes its place.

    When the block fails, the temporary file is removed and `path` is what it was.

    Raises:
        VividError: the folder cannot be written or the disk is full; other errors of the block pass through.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise VividError(f"{target}: cannot be written: {error}") from error
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        # A temporary file is private; a finished one has the rights any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)
        part.replace(target)
    except OSError as error:
        raise VividError(f"{target}: cannot be written: {error}; the file is as it was before") from error
    finally:
        part.unlink(missing_ok=True)


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
    """Hold the lock of the folder `entry`, whose parent is made where it is missing.

    Args:
        waiting: logged where another process holds the lock.
        option: as of :func:`disk_errors`.
    """
    with disk_errors(entry.parent, option=option):
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.with_name(f"{entry.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning(waiting)
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
