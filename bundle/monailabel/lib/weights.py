"""The weights that answer: those of the bundle, until others were trained. None is ever replaced."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

BUNDLE = "bundle"


@dataclass(frozen=True)
class Served:
    """Weights: their name, "bundle" or a number of four digits, and their file."""

    name: str
    path: Path


class Weights:
    """The weights of a bundle, and a folder of numbered ones that were trained from them.

    The highest number is served. To go back to older weights, move the folders of the newer ones away.
    """

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.original = Served(BUNDLE, bundle / "models" / "model.pt")
        self.folder = folder

    def trained(self) -> list[Served]:
        """Oldest first."""
        found = sorted(self.folder.glob("[0-9][0-9][0-9][0-9]/model.pt"))
        return [Served(path.parent.name, path) for path in found]

    def served(self) -> Served:
        """Those that answer now."""
        return (self.trained() or [self.original])[-1]

    @contextmanager
    def new(self) -> Iterator[Path]:
        """A folder to train in. It takes its number when the block ends well; until then nobody sees it.

        Raises:
            BlockingIOError: another training is running.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "unfinished"
        try:
            with FileLock(self.folder / ".lock", timeout=0):  # the system lets go of it when a training is killed
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                yield part
                newest = max((int(one.name) for one in self.trained()), default=0)
                part.rename(self.folder / f"{newest + 1:04d}")
        except Timeout as error:
            raise BlockingIOError("another training is running") from error
