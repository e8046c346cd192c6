"""Features of a frozen encoder: computed once for each encoder and split, then read from the cache."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import ordered_loader
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.images.read import READER
from vivid_monai.storage.arrays import RECORD, ArrayCache, Chunk, Rows, fingerprint, open_rows
from vivid_monai.storage.files import versions

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from vivid_monai.evaluation.encoders import Encoder

PACKAGES = (
    *("vivid-monai", "torch", "monai", "pillow", "pydicom", "nibabel"),
    *("transformers", "timm", "open_clip_torch", "torchxrayvision"),
)
"""What stands between an image file and its features, where installed; another version of one is another entry."""


@dataclass(frozen=True)
class Features:
    """Features of images, row by row.

    Attributes:
        x: float32 (N, D), or float16 (N, T, D) for tokens; mapped into memory where it comes from a cache.
        states: int64 (N, F), codes of :mod:`vivid_monai.ums.states`.
        patients, ids: str (N,).
        skipped: images that could not be read, ``(path, reason)``; they have no row.
        encoder: fingerprint of the encoder; "" where it is not known.
        datasets: name of each row's data set, str (N,); empty where it is not known.
    """

    x: np.ndarray
    states: np.ndarray
    patients: np.ndarray
    ids: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()
    encoder: str = ""
    datasets: np.ndarray = field(default_factory=lambda: np.empty(0, str))

    def select(self, rows: np.ndarray, columns: Sequence[int] | slice = slice(None)) -> Self:
        """Some of the rows (bool (N,) or their places) and of the columns of the states."""
        parts = {name: getattr(self, name)[rows] for name in ("x", "patients", "ids")}
        datasets = self.datasets[rows] if len(self.datasets) else self.datasets
        return replace(self, **parts, states=self.states[rows][:, columns], datasets=datasets)


class FeatureStore:
    """Gives the features of any encoder and split, from the cache where they are, otherwise computed now.

    An entry is found only for the very same encoder (weights, pooling, preprocessing), images (paths, slices, and each
    file's size and times of change), batch size, kind of device and versions of the packages that read images and
    compute features. What is found equals what would be computed, bit for bit.

    Args:
        root: folder of the cache; None: nothing is stored.
        batch_size: images to a forward pass.
        num_workers: processes that read images.
        device: where the encoder runs.
        keep_images: keep decoded images for the next encoder with the same preprocessing: the `cache` of
            :class:`~vivid_monai.data.dataset.ImageDataset`.
        exact: False also takes features that another batch size, kind of device or version computed, which differ in
            their last digits: those of a training run, wherever it ran.
    """

    def __init__(
        self,
        root: Path | str | None,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        keep_images: bool | str | Path = False,
        exact: bool = True,
    ) -> None:
        self.root = None if root is None else Path(root)
        self.batch_size, self.num_workers, self.device = batch_size, num_workers, torch.device(device)
        self.keep_images, self.exact = keep_images, exact
        self._datasets: list[ImageDataset] = []  # whoever holds a dataset holds its images

    def features(
        self,
        encoder: "Encoder",
        manifest: Manifest,
        split: str,
        fields: Sequence[str],
        *,
        title: str = "",
        keep: bool = True,
    ) -> Features:
        """Features of every readable image of a split, in the manifest's order, with the states of ``fields``.

        What could not be read is logged and listed in ``skipped``, on a hit too. ``keep=False``: neither look into the
        cache nor store.

        Raises:
            VividError: an empty split, an unknown field, no readable image, an encoder that gives something else than
                finite (B, dim), a cache folder that cannot be written.
        """
        part = manifest.select(split)
        items, n, title = part.items(fields), len(part), title or split
        own = encoder.fingerprint()

        def key() -> dict[str, Any]:
            return {
                "encoder": own,
                "preprocess": encoder.preprocess.to_dict(),
                "files": fingerprint(((str(row["image"]), row.get("slice")) for row in items), n),
                "batch_size": self.batch_size,
                "device": self.device.type,
                "versions": versions(PACKAGES) | {"reader": READER},
            }

        started, computed = time.perf_counter(), 0

        def fill(first: int) -> Iterator[Chunk]:
            nonlocal computed
            computed = n - first
            return self.extract(encoder, items, first)

        root = self.root if keep else None
        rows = None if self.exact or root is None else _close_enough(root, key())
        if rows is None:
            # A record after every batch: a batch may take as long as the rest of the work of a killed process.
            cache = ArrayCache(root, option="--cache_dir", checksum=True, seconds=0)
            rows = cache.get(key, fill, n, shape=encoder.shape, dtype=_dtype(encoder), title=title)
        if rows.folder is not None:
            size = sum(file.stat().st_size for file in rows.folder.iterdir()) / 1e6
            how = f"{computed} images in {time.perf_counter() - started:.1f} s, now" if computed else "found"
            readable = n - len(rows.unreadable)
            width = " x ".join(map(str, encoder.shape))
            logger.info(f"{title}: {readable} x {width} features, {how} in {rows.folder} ({size:.1f} MB)")
        missing = sorted(rows.unreadable)
        skipped = tuple((rows.unreadable[index].path, rows.unreadable[index].reason) for index in missing)
        if skipped:
            first = ": ".join(skipped[0])
            logger.info(f"{title}: {len(skipped)} images cannot be read and are left out, for example {first}")
        kept = np.delete(np.arange(n), missing)
        x = rows.array[kept] if missing else rows.array
        ids = np.array(part.table["id"].to_pylist())[kept]
        states = part.states(fields).astype(np.int64)[kept]
        return Features(x, states, part.patients()[kept], ids, skipped, own, part.datasets()[kept].astype(str))

    def extract(self, encoder: "Encoder", items: Sequence[dict[str, Any]], first: int = 0) -> Iterator[Chunk]:
        """Features of the images from ``first`` on, a multiple of the batch size, batch by batch in evaluation mode.

        What cannot be read has a row of zeros and is named beside the rows; nothing is stored.
        """
        dataset = ImageDataset(items, encoder.preprocess, cache=self.keep_images, num_workers=self.num_workers)
        if self.keep_images:
            self._datasets.append(dataset)
        position = {row["id"]: index for index, row in enumerate(items)}
        rest: Any = dataset[first:] if first else dataset
        training = encoder.training
        encoder.to(self.device).eval()
        try:
            for batch in ordered_loader(rest, self.batch_size, num_workers=self.num_workers):
                with torch.no_grad():
                    x = encoder(batch["image"].to(self.device, non_blocking=True)).float().cpu().numpy()
                x = x.astype(_dtype(encoder), copy=False)
                ids, lost, n = batch["id"], batch["skipped"], len(batch["id"])
                if x.shape != (n, *encoder.shape):
                    raise VividError(f"the encoder gave {x.shape} for {n} images; it promised {encoder.shape} each")
                if not (finite := np.isfinite(x).reshape(n, -1).all(1)).all():
                    bad = ids[int(np.argmin(finite))]
                    raise VividError(f"the encoder's features of image {bad} are not finite; its weights are broken")
                # The loader reports a batch without any image together with its neighbour.
                places = np.array([position[key] for key in ids]) - first
                rows = np.zeros((n + len(lost), *encoder.shape), x.dtype)
                rows[places] = x
                missing = (np.delete(np.arange(len(rows)), places) + first).tolist()
                yield rows, dict(zip(missing, lost, strict=True))
                first += len(rows)
        finally:
            encoder.train(training)


def _dtype(encoder: "Encoder") -> type:
    """Tokens take hundreds of times the room of features: half of it must do."""
    return np.float32 if len(encoder.shape) == 1 else np.float16


def _close_enough(root: Path, wanted: dict[str, Any]) -> Rows | None:
    """The entry of the same encoder and files, however they were computed."""
    for path in sorted(root.glob(f"*/{RECORD}")):
        try:
            key = json.loads(path.read_text())["key"]
            if path.parent.suffix != ".part" and all(key[name] == wanted[name] for name in ("encoder", "files")):
                return open_rows(path.parent, checksum=True)
        except (OSError, ValueError, KeyError, TypeError, VividError):
            continue  # damaged: computed again
    return None
