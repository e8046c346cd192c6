"""Which files are given, and what becomes of each: input of the network, or the reason why there is none.

This file goes into every bundle, so that it finds, refuses and lists the same files with and without this package.
"""

import csv
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import Dataset

from .eligibility import NotAssessed
from .postprocessing import ANSWERED, NOT_ASSESSED, TABLES, UNREADABLE
from .errors import VividError, find_cause
from .preprocess import plain_tensors
from .read import ImageError

JOURNAL = "journal.jsonl"
OUTPUTS = {*TABLES, JOURNAL, "overlays", "reports"}
"""What is written beside answers; in a folder that holds answers these are no inputs."""
UNSEEN = "cannot be entered"
"""In the problem of a folder whose files are not known."""
_DESKTOP = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "__macosx", "@eadir"),
    *("$recycle.bin", "system volume information", "lost+found"),
}
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


@dataclass(frozen=True)
class Input:
    """A file as it was when it was found; another size or time makes it another input.

    Attributes:
        problem: why it is not opened; "" for a file.
    """

    path: str
    size: int
    mtime_ns: int
    problem: str = ""


def find_inputs(paths: Iterable[str | os.PathLike[str]]) -> list[Input]:
    """Files as they are given, and every file under the folders that are given, in order, each once.

    Links are followed, into each folder once, whatever leads to it. What cannot be opened is there with its problem:
    links to nothing, pipes, sockets and devices, files that have vanished, folders without rights. Under a folder,
    hidden files and folders, those of desktops (Thumbs.db, desktop.ini) and what a prediction wrote are passed over.
    What a file is, is decided later by its content.

    Raises:
        VividError: an empty path, one that does not exist, or no file at all.
    """
    found: dict[str, Input] = {}
    folders: set[tuple[int, int]] = set()
    given = [os.fspath(path) for path in paths]
    for path in given:
        if not path:
            raise VividError('a path is empty (""), as of a shell variable that is not set; "." is this folder')
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise VividError(f"{path}: there is no such file or folder") from None
        except OSError:
            pass  # told below
        for one in _inputs(path, folders):
            found.setdefault(os.path.abspath(one.path), one)
    if not found:
        raise VividError(
            f"{', '.join(given[:3])}: there is no file to answer; hidden files and answers of before are passed over"
        )
    return list(found.values())


def _inputs(root: str, folders: set[tuple[int, int]]) -> Iterator[Input]:
    """Of each folder its files first; `folders` are those that were met."""
    waiting = [root]
    while waiting:
        path = waiting.pop()
        try:
            status = os.stat(path)
            if not stat.S_ISDIR(status.st_mode):
                yield _file(path, status)
                continue
            if (place := (status.st_dev, status.st_ino)) in folders:
                continue
            folders.add(place)
            names = sorted(os.listdir(path))
        except OSError as error:
            yield _problem(path, error, closed=os.path.isdir(path))
            continue
        if _holds_answers(path, names):
            names = [name for name in names if name not in OUTPUTS]
        below = []
        for name in names:
            if name.startswith(".") or name.lower() in _DESKTOP:
                continue
            one = os.path.join(path, name)
            try:
                status = os.stat(one)
            except OSError as error:  # without the right to enter a folder, its names are known and nothing else
                yield _problem(one, error)
                continue
            if stat.S_ISDIR(status.st_mode):
                below.append(one)
            else:
                yield _file(one, status)
        waiting += reversed(below)


def _file(path: str, status: os.stat_result) -> Input:
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = f"{path}: is {_KINDS.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file"
    return Input(path, status.st_size, status.st_mtime_ns, problem)


def _problem(path: str, error: OSError, *, closed: bool = False) -> Input:
    what = UNSEEN if closed or isinstance(error, PermissionError) else "cannot be opened"
    return Input(path, 0, 0, f"{path}: {what} ({error.strerror})")


def _holds_answers(folder: str, names: Sequence[str]) -> bool:
    """Whether a prediction was written here: by its journal, or by the table of a bundle that ran by itself."""
    for name in {JOURNAL, TABLES[0]}.intersection(names):
        path = os.path.join(folder, name)
        try:
            if not os.path.isfile(path):
                continue
            with open(path, "rb") as file:
                head = file.readline(10_000)
        except OSError:
            continue
        if name == TABLES[0] and head.startswith(b"image,status,"):
            return True
        try:
            if name == JOURNAL and {"model", "version", "weights"} <= json.loads(head).keys():
                return True
        except (ValueError, AttributeError):
            continue
    return False


def tell(inputs: Sequence[Input], folder: str) -> None:
    """Print what became of the inputs and where that is written: the end of a bundle's run.

    Raises:
        VividError: nothing was answered, or folders could not be entered; a run must not end as if all were well.
    """
    with open(os.path.join(folder, TABLES[0]), newline="", encoding="utf-8") as file:
        counts = Counter(row["status"] for row in csv.DictReader(file))
    said = ", ".join(f"{counts[status]:,} {status}" for status in (ANSWERED, NOT_ASSESSED, UNREADABLE))
    written = [name for name in TABLES if os.path.exists(os.path.join(folder, name))]
    print(f"\n{len(inputs):,} files: {said}\nIn {folder}: {', '.join(written)}")
    if unseen := [one.path for one in inputs if UNSEEN in one.problem]:
        raise VividError(f"{len(unseen)} folders or files could not be entered; unreadable.csv lists them")
    if not counts[ANSWERED]:
        raise VividError(f"no image was answered; {' and '.join(written)} in {folder} say why")


class InputDataset(Dataset):
    """Each input as ``{"path", "status", "reason", "accepted": str, "image": float32 (C, H, W)}``.

    The status is "answered" where there is an image for the network. Where the file is not assessed by its tags or is
    unreadable, the reason says why, and the image is black, so that batches keep their shape. ``"accepted"`` names the
    tags that would have refused it and were overridden.

    Args:
        inputs: of :func:`find_inputs`.
        transform: what an item ``{"image": path}`` goes through.
        shape: of the image, (C, H, W).
    """

    def __init__(
        self, inputs: Sequence[Input], transform: Callable[[dict[str, Any]], dict[str, Any]], *, shape: Sequence[int]
    ) -> None:
        super().__init__(inputs, transform)
        self.shape = tuple(shape)

    def _transform(self, index: int) -> dict[str, Any]:
        one: Input = self.data[index]
        item: dict[str, Any] = {"path": one.path, "status": UNREADABLE, "reason": one.problem, "accepted": ""}
        if not one.problem:
            try:
                with plain_tensors():
                    read = self.transform({"image": one.path})
                return item | {"status": ANSWERED} | {key: read[key] for key in ("image", "accepted") if key in read}
            except Exception as error:
                cause = find_cause(error)
                if not isinstance(cause, ImageError | NotAssessed):
                    raise
                status = NOT_ASSESSED if isinstance(cause, NotAssessed) else UNREADABLE
                item |= {"status": status, "reason": str(cause)}
        return item | {"image": torch.zeros(self.shape)}
