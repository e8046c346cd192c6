"""An entry of decoded images in the making, from where the last process stopped."""

import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivid_monai.data.pixels import PIXELS, RECORD, UNREADABLE, read_unreadable
from vivid_monai.data.skipped import Skipped
from vivid_monai.entries import disk_errors, flush
from vivid_monai.files import whole_file

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
