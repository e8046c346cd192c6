"""Files and folders that are written whole or not at all; entries of a cache: their names, and who makes them."""

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout

from vivid_monai.errors import VividError, printable

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, where what a killed process leaves stays
    fcntl = None

logger = logging.getLogger(__name__)


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of a temporary file in the folder of `path` (made where missing), which takes its place.

    When the block fails, the temporary file is removed and `path` is what it was. A process that is killed leaves it,
    and the next one that writes into this folder removes it.

    Raises:
        VividError: the folder cannot be written or the disk is full; other errors of the block pass through.
    """
    target = Path(path)
    try:
        part, let_go = _begin(target, tempfile.mkstemp)
    except OSError as error:
        raise VividError(f"{target}: cannot be written: {error}") from error
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
        let_go()


@contextmanager
def part_folder(target: Path) -> Iterator[Path]:
    """Yields a new folder in a temporary one beside `target`, to take its place; what is left at the end is removed.

    A process that is killed leaves it, and the next one that writes beside it removes it.

    Raises:
        OSError: there cannot be one.
    """
    outer, let_go = _begin(target, tempfile.mkdtemp)
    try:
        part = outer / target.name  # the temporary one is private; this one has any new folder's rights
        part.mkdir()
        yield part
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        let_go()


_PART = re.compile(r"\..+\.[a-z0-9_]{8}\.part")


def _begin(target: Path, make: Callable[..., str | tuple[int, str]]) -> tuple[Path, Callable[[], None]]:
    """A new file or folder beside `target`, locked as not left behind, and what lets go of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(target.parent.absolute())
    while True:
        made = make(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        if fcntl is None:  # and a file that is open could not be renamed
            if not isinstance(made, str):
                os.close(made[0])
            return Path(made if isinstance(made, str) else made[1]), lambda: None
        held, name = (os.open(made, os.O_RDONLY), made) if isinstance(made, str) else made
        with suppress(OSError):  # where there are no locks, nothing is taken to be left behind
            fcntl.flock(held, fcntl.LOCK_SH)
        if os.path.exists(name):  # nobody removed it before it was locked
            return Path(name), partial(os.close, held)
        os.close(held)


@cache
def _remove_left(folder: Path) -> None:
    """Remove what killed processes left of files and folders; looked for once, as a folder may hold many files."""
    if fcntl is None:
        return
    for part in folder.glob(".*.part"):
        if _PART.fullmatch(part.name):
            with suppress(OSError):  # another process holds it, or was faster
                held = os.open(part, os.O_RDONLY if part.is_dir() else os.O_RDWR)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(part) if part.is_dir() else part.unlink()
                finally:
                    os.close(held)


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


def require_text(path: Path) -> None:
    """Raise a VividError where bytes of a path are not UTF-8: tables of Arrow and JSON cannot name it."""
    if printable(str(path)) != str(path):
        raise VividError(f"{printable(str(path))}: this name is not plain text in UTF-8; rename it")


def require_file(path: Path) -> None:
    """Raise a VividError where a path leads to something that is no file, and to read it may wait for ever.

    That there is nothing is said by whoever reads it. Raises as :func:`require_text`, too.
    """
    require_text(path)
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise VividError(f"{path}: is a pipe, a socket or a device, not a file; write its content to a file first")


def tracked_by_git(folder: Path) -> str:
    """A file in a folder that git tracks, as git names it; "" where there is none, no repository or no git."""
    command = ["git", "-C", os.fspath(folder), "ls-files", "-z", "--", "."]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError:
        return ""
    return listed.stdout.split("\0")[0] if listed.returncode == 0 else ""
