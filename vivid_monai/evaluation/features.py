"""Features of a frozen encoder: computed once for each encoder and split, then read from the cache."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.evaluation.cache import FeatureCache
from vivid_monai.evaluation.extraction import extract
from vivid_monai.evaluation.sinks import Extracted, InMemory, Sink
from vivid_monai.storage.files import versions

if TYPE_CHECKING:
    from vivid_monai.evaluation.encoders import Encoder

PACKAGES = (
    *("vivid-monai", "torch", "monai", "pillow", "pydicom", "nibabel"),
    *("transformers", "timm", "open_clip_torch", "torchxrayvision"),
)
"""What stands between an image file and its features, where installed; another version of one is another entry."""


@dataclass(frozen=True)
class Features:
    """Features of a data set with what belongs to them, row by row.

    Attributes:
        x: float32 (N, D); mapped into memory where it comes from a cache.
        states: int64 (N, F), codes of :mod:`vivid_monai.ums.states`.
        patients: str (N,).
        ids: str (N,).
        skipped: images that could not be read, ``(path, reason)``; they have no row.
        encoder: fingerprint of the encoder; "" where it is not known.
    """

    x: np.ndarray
    states: np.ndarray
    patients: np.ndarray
    ids: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()
    encoder: str = ""


class FeatureStore:
    """Gives the features of any encoder and split, from the cache where they are, otherwise computed now.

    An entry is found only for the very same encoder (weights, pooling, preprocessing), images (ids, paths, slices,
    and each file's size and times of change), states, patients, batch size, kind of device and versions of the
    packages that read images and compute features. What is found equals what would be computed, bit for bit.

    Args:
        root: folder of the cache; None: nothing is stored.
        batch_size: images to a forward pass.
        num_workers: processes that read images.
        device: where the encoder runs.
        keep_images: keep decoded images for the next encoder with the same preprocessing, as the `cache` of
            :class:`~vivid_monai.data.dataset.ImageDataset`: in memory or in a folder.
    """

    def __init__(
        self,
        root: Path | str | None,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        keep_images: bool | str | Path = False,
    ) -> None:
        self.cache = None if root is None else FeatureCache(root)
        self.batch_size, self.num_workers, self.device = batch_size, num_workers, torch.device(device)
        self.keep_images = keep_images
        self._datasets: dict[str, ImageDataset] = {}

    def features(
        self, encoder: "Encoder", manifest: Manifest, split: str, fields: Sequence[str], *, title: str = ""
    ) -> Features:
        """Features of every readable image of a split, in the manifest's order, with the states of ``fields``.

        What could not be read is told on stderr and listed in ``skipped``, on a hit too.

        Raises:
            VividError: an empty split, an unknown field, no readable image, an encoder that gives something else than
                finite (B, dim), a cache folder that cannot be written.
        """
        part = manifest.select(split)
        states = part.states(fields).astype(np.int64)
        title, fingerprint = title or split, encoder.fingerprint()
        key = {
            "encoder": fingerprint,
            "preprocess": encoder.preprocess.to_dict(),
            "images": _fingerprint_of_images(part),
            "batch_size": self.batch_size,
            "device": self.device.type,
            "dtype": "float32",
            "versions": versions(PACKAGES),
        }
        computed = 0

        def fill(sink: Sink) -> None:
            nonlocal computed
            computed = len(part) - sink.images
            options: dict[str, Any] = {"batch_size": self.batch_size, "num_workers": self.num_workers}
            dataset = self._dataset(part, fields, encoder, key)
            extract(encoder, dataset, sink, dim=encoder.dim, device=self.device, title=title, **options)
            if _fingerprint_of_images(part) != key["images"]:
                raise VividError(f"{title}: image files changed while they were read; run the same command again")

        started = time.perf_counter()
        if self.cache is None:
            memory = InMemory()
            fill(memory)
            got = memory.result()
        else:
            got = self.cache.get(key, images=len(part), dim=encoder.dim, fill=fill, title=title)
        _report(title, got, computed, time.perf_counter() - started)
        rows = np.delete(np.arange(len(part)), got.missing)
        ids = np.array(part.table["id"].to_pylist())
        return Features(got.x, states[rows], part.patients()[rows], ids[rows], got.skipped, fingerprint)

    def _dataset(
        self, part: Manifest, fields: Sequence[str], encoder: "Encoder", key: Mapping[str, Any]
    ) -> ImageDataset:
        if not self.keep_images:
            return ImageDataset(part.items(fields), encoder.preprocess)
        name = json.dumps([key["preprocess"], key["images"]])
        if name not in self._datasets:
            options: dict[str, Any] = {"cache": self.keep_images, "num_workers": self.num_workers}
            self._datasets[name] = ImageDataset(part.items(fields), encoder.preprocess, **options)
        return self._datasets[name]


def _fingerprint_of_images(part: Manifest) -> str:
    """SHA-256 over everything that makes the images of a split and their labels what they are, in order.

    A file replaced in place changes its time of status change (ctime) even where size and modification time are kept,
    as copying tools and archives of equally large volumes do.
    """
    table = part.table
    names = ("id", "image", "slice", "patient_id")
    root = os.path.abspath(part.image_root)
    digest = hashlib.sha256(json.dumps([root, list(part.fields)]).encode())
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    for row in tqdm(rows, "looking at image files", len(part), unit="file", delay=2, leave=False):
        try:
            status = os.stat(os.path.join(root, row[1]))
            file = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        except OSError:
            file = []
        digest.update(json.dumps([*row, *file]).encode())
    digest.update(part.states().tobytes())
    return digest.hexdigest()


def _report(title: str, got: Extracted, computed: int, seconds: float) -> None:
    lines = []
    if got.path is not None:
        size = sum(file.stat().st_size for file in got.path.iterdir()) / 1e6
        how = f"{computed} images in {seconds:.1f} s, now" if computed else "found"
        lines.append(f"{title}: {len(got.x)} x {got.x.shape[1]} features, {how} in {got.path} ({size:.1f} MB)")
    if got.skipped:
        path, reason = got.skipped[0]
        lines.append(
            f"{title}: {len(got.skipped)} images cannot be read and are left out, for example {path}: {reason}"
        )
    for line in lines:
        print(line, file=sys.stderr)
