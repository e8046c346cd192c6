"""Where features go batch by batch: into memory, or into an entry of the cache in the making.

An entry is a folder with ``features.npy`` (float32 (N, D), to be mapped into memory) and ``entry.json`` (the key, what
could not be read, a checksum). While it is being made the folder ends in ``.part``: each batch is appended and flushed
before the record counts it, so a killed process loses the batch it was at and no more. Rows are appended with ordinary
writes, since a write into mapped memory cannot report a full disk.
"""

import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from vivid_monai.storage.files import disk_errors, flush, whole_file
from vivid_monai.storage.skipped import Skipped

FEATURES, RECORD = "features.npy", "entry.json"
OPTION = "--cache_dir"


@dataclass(frozen=True)
class Extracted:
    """Features of a list of images.

    Attributes:
        x: float32 (N, D).
        missing: positions of the images that could not be read and have no row.
        skipped: ``(path, reason)`` of each of them.
        path: the folder of the entry; None where nothing is stored.
    """

    x: np.ndarray
    missing: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...]
    path: Path | None = None


class Sink(Protocol):
    """Where features go. ``images``: how many images it has been given, those that could not be read included."""

    @property
    def images(self) -> int: ...

    def add(self, x: np.ndarray, missing: Sequence[int], skipped: Sequence[Skipped], images: int) -> None:
        """Take one batch: x float32 (B, D); positions of its images without a row; why; images done with it."""


class InMemory:
    """Sink of features that are kept in memory only."""

    def __init__(self) -> None:
        self.images = 0
        self._x: list[np.ndarray] = []
        self._missing: list[int] = []
        self._skipped: list[tuple[str, str]] = []

    def add(self, x: np.ndarray, missing: Sequence[int], skipped: Sequence[Skipped], images: int) -> None:
        self._x.append(x)
        self._missing += missing
        self._skipped += [(one.path, one.reason) for one in skipped]
        self.images = images

    def result(self) -> Extracted:
        return Extracted(np.concatenate(self._x), tuple(self._missing), tuple(self._skipped))


class PartialEntry:
    """Sink of features that are written to the ``.part`` folder of an entry, from where the last process stopped.

    Args:
        folder: of the entry in the making.
        key: what the features are computed from.
        dim: length D of a feature.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], dim: int) -> None:
        self.folder, self.dim = folder, dim
        self.record: dict[str, Any] = {
            "key": dict(key), "images": 0, "rows": 0, "missing": [], "skipped": [], "crc32": 0,
        }  # fmt: skip
        stored = load_record(folder / RECORD)
        if not (stored and stored["key"] == self.record["key"] and self._restore(stored)):
            with disk_errors(folder, option=OPTION):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                with (folder / FEATURES).open("wb") as file:
                    _write_header(file, 0, dim)

    @property
    def images(self) -> int:
        """Images done so far, those that could not be read included."""
        return self.record["images"]

    def add(self, x: np.ndarray, missing: Sequence[int], skipped: Sequence[Skipped], images: int) -> None:
        rows = np.ascontiguousarray(x, "<f4").tobytes()
        with disk_errors(self.folder, option=OPTION), (self.folder / FEATURES).open("ab") as file:
            file.write(rows)
            flush(file)
        self.record = {
            "key": self.record["key"],
            "images": images,
            "rows": self.record["rows"] + len(x),
            "missing": [*self.record["missing"], *missing],
            "skipped": [*self.record["skipped"], *([one.path, one.reason] for one in skipped)],
            "crc32": zlib.crc32(rows, self.record["crc32"]),
        }
        with whole_file(self.folder / RECORD) as part:
            part.write_text(json.dumps(self.record))

    def finish(self, entry: Path) -> None:
        """Write how many rows there are and give the folder its final name."""
        with disk_errors(self.folder, option=OPTION):
            with (self.folder / FEATURES).open("rb+") as file:
                _write_header(file, self.record["rows"], self.dim)
                flush(file)
            self.folder.replace(entry)

    def _restore(self, stored: dict[str, Any]) -> bool:
        path = self.folder / FEATURES
        try:
            with path.open("rb+") as file:
                start = _write_header(file, 0, self.dim)
                size = stored["rows"] * self.dim * 4
                kept = file.read(size)
                if len(kept) != size or zlib.crc32(kept) != stored["crc32"]:
                    return False
                file.truncate(start + size)  # what follows is a batch that the record does not count
        except OSError:
            return False
        self.record = stored
        return True


def load_record(path: Path) -> dict[str, Any] | None:
    """The record of an entry, or None where there is none that can be read."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    wanted = {"key", "images", "rows", "missing", "skipped", "crc32"}
    return record if isinstance(record, dict) and wanted <= record.keys() else None


def _write_header(file: BinaryIO, rows: int, dim: int) -> int:
    """NumPy leaves room in the header for the row count to grow, so that it can be written again in place."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)})
    return file.tell()
