"""Decoded images by index, in memory or mapped from a finished entry on disk.

An entry is a folder with ``pixels.npy`` (uint8 (N, C, H, W); zeros where an image cannot be read), ``unreadable.jsonl``
(a line ``[index, path, reason]`` for each such image) and ``entry.json`` (its key, and how much of it is done).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivid_monai.data.skipped import Skipped
from vivid_monai.errors import VividError

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
