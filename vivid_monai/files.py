"""Files that are there whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vivid_monai.errors import VividError


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file so that a reader never sees a part of it.

    Yields the path of a temporary file in the same folder (made where missing). When the block ends well, the file
    takes the place of `path`; when it fails, the file is removed and `path` is what it was.

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
