"""Features on disk: computed once, found again only for exactly what they were computed from, whole or not at all."""

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vivid_monai.errors import VividError
from vivid_monai.evaluation.sinks import FEATURES, OPTION, RECORD, Extracted, PartialEntry, load_record
from vivid_monai.storage.files import disk_errors, entry_name, made_by_one, tell

FORMAT = 1


class FeatureCache:
    """A folder of entries.

    Args:
        root: the folder; made when something is stored.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def get(
        self, key: Mapping[str, Any], *, images: int, dim: int, fill: Callable[[PartialEntry], None], title: str = ""
    ) -> Extracted:
        """The entry of a key, made where it is not there yet.

        A process that finds another one at work on the same key waits for it. An entry that is damaged is made again,
        which is told on stderr.

        Args:
            key: everything that the features depend on; JSON.
            images: how many images the entry is of.
            dim: length D of a feature.
            fill: extracts the images that the sink does not have yet.
            title: words for messages.

        Raises:
            VividError: the folder cannot be written, the disk is full; as ``fill``.
        """
        key = json.loads(json.dumps({"format": FORMAT, **key}))
        entry = self.root / entry_name(key)
        try:
            found = _read(entry, key, images, dim)
        except _Damaged:
            found = None
        if found is not None:
            return found
        waiting = f"{title}: another process is extracting these features; waiting for it"
        with made_by_one(entry, waiting, option=OPTION):
            try:
                found = _read(entry, key, images, dim)
            except _Damaged as damage:
                tell(f"{title}: the cache entry {entry} is damaged ({damage}); it is made again")
                with disk_errors(entry, option=OPTION):
                    shutil.rmtree(entry)
            if found is not None:
                return found
            part = PartialEntry(entry.with_name(f"{entry.name}.part"), key, dim)
            if part.images:
                tell(f"{title}: going on after {part.images} of {images} images")
            fill(part)
            part.finish(entry)
            made = _read(entry, key, images, dim)
        if made is None:
            raise VividError(f"{entry}: vanished as soon as it was written; is something clearing the cache folder?")
        return made

    def describe(self) -> dict[str, Any]:
        """Where the cache lies (``folder``), its ``entries`` and ``unfinished`` ones, and the ``bytes`` of both."""
        folders = [path for path in sorted(self.root.glob("*")) if (path / FEATURES).is_file()]
        unfinished = sum(path.suffix == ".part" for path in folders)
        return {
            "folder": str(self.root),
            "entries": len(folders) - unfinished,
            "unfinished": unfinished,
            "bytes": sum(file.stat().st_size for path in folders for file in path.iterdir()),
        }


class _Damaged(Exception):
    """An entry that cannot be what was written."""


def _read(entry: Path, key: Mapping[str, Any], images: int, dim: int) -> Extracted | None:
    if not entry.exists():
        return None
    record = load_record(entry / RECORD)
    if record is None or record["key"] != key or record["images"] != images:
        raise _Damaged(f"{RECORD} is broken")
    try:
        x = np.load(entry / FEATURES, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _Damaged(str(error)) from error
    if x.shape != (record["rows"], dim) or x.dtype != np.float32 or zlib.crc32(x) != record["crc32"]:
        raise _Damaged("the features are not those that were written")
    return Extracted(x, tuple(record["missing"]), tuple((path, reason) for path, reason in record["skipped"]), entry)
