"""Items of a manifest as tensors, with randomness that depends on the seed and the draw alone."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset

from vivid_monai.data.items import Items
from vivid_monai.errors import VividError
from vivid_monai.images.augment import RandomAugmentation
from vivid_monai.images.preprocess import BasePreprocess, plain_tensors
from vivid_monai.images.read import PACKAGES, READER, image_error_behind
from vivid_monai.storage.arrays import ArrayCache, Chunk, Rows, fingerprint, in_chunks
from vivid_monai.storage.files import versions
from vivid_monai.storage.skipped import Skipped


class ImageDataset(Dataset):
    """Images with their targets, read from files, kept in memory, or mapped from a cache on disk.

    Asked for ``(index, draw)``, or for a plain index (then draw = index), it returns ``{"image": float32 (C, *spatial),
    "id": str, "patient_id" and "dataset": str (where the row has them)}`` and what the targets add, or a
    :class:`Skipped` where the image cannot be read. With an augmentation, ``"image"`` is what the cache holds (uint8 or
    int16) and ``"drawn"`` says what is going to be done to it. The same seed and draw always give the same item. As in
    every MONAI dataset, a slice or a list of indices gives a ``Subset``.

    Args:
        data: dicts with ``"image"`` (path), ``"id"``, what the targets need, and optionally ``"patient_id"``,
            ``"dataset"`` and ``"slice"``, as ``Manifest.items`` makes them.
        preprocess: what becomes of the files.
        targets: callables ``(row, rng) -> dict`` that add to an item, see :mod:`vivid_monai.data.targets`; they share
            the generator, in this order.
        augmentation: draws what happens to each image; None: images are what the network takes.
        seed: of augmentation and targets, >= 0.
        cache: decode all images now and keep them as bytes, 50 kB per image at 224 px: True in memory, a folder on
            disk. Items are equal bit for bit either way.
        num_workers: processes that decode for the cache; 0: threads.

    Raises:
        VividError: no data, a negative seed, items that lack a key, what a target's check finds, targets about sides
            while images are mirrored; with a cache, no image that can be read, a folder that cannot be written.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        preprocess: BasePreprocess,
        *,
        targets: Sequence[Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]] = (),
        augmentation: RandomAugmentation | None = None,
        seed: int = 0,
        cache: bool | str | Path = False,
        num_workers: int = 0,
    ) -> None:
        _check(data, targets)
        if seed < 0:
            raise VividError(f"ImageDataset: seed must not be negative, but is {seed}")
        if augmentation and augmentation.augment.flip and (sided := [t for t in targets if getattr(t, "sided", False)]):
            name = type(sided[0]).__name__
            raise VividError(f"ImageDataset: mirrored images would need {name} to swap left and right; set flip to 0")
        super().__init__(data, preprocess.transform(stages=["stored"]))
        self.preprocess, self.targets, self.augmentation, self.seed = preprocess, tuple(targets), augmentation, seed
        self._to_input = preprocess.transform(stages=["unit", "normal"])
        self._cached: Rows | None = None
        if cache:
            shape, dtype, n = preprocess.stored_shape, preprocess.stored_dtype, len(data)

            def fill(first: int) -> Iterator[Chunk]:
                return in_chunks(self.pixels, shape, dtype, range(first, n), workers=num_workers)

            store = ArrayCache(None if cache is True else cache)
            self._cached = store.get(self._key, fill, n, shape=shape, dtype=dtype)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, tuple):
            return self._item(*index)
        return super().__getitem__(index)

    def pixels(self, index: int) -> torch.Tensor | Skipped:
        """One image before it is normalised: uint8 (slices, H, W), or why it cannot be read."""
        if self._cached is not None:
            return self._cached[index]
        row = self.data[index]
        try:
            with plain_tensors():
                return self.transform({key: row[key] for key in ("image", "slice") if key in row})["image"]
        except Exception as error:
            if (unreadable := image_error_behind(error)) is None:
                raise
            return Skipped(path=str(row["image"]), reason=str(unreadable))

    def _transform(self, index: int) -> dict[str, Any] | Skipped:
        index = range(len(self.data))[index]
        return self._item(index, index)

    def _item(self, index: int, draw: int) -> dict[str, Any] | Skipped:
        image = self.pixels(index)
        if isinstance(image, Skipped):
            return image
        augment_seed, target_seed = np.random.SeedSequence([self.seed, draw]).generate_state(2)
        row = self.data[index]
        item: dict[str, Any] = {}
        if self.augmentation is None:
            with plain_tensors():
                item["image"] = self._to_input({"image": image})["image"]
        else:
            item |= {"image": image, "drawn": self.augmentation.draw(int(augment_seed))}
        rng = np.random.default_rng(target_seed)
        for target in self.targets:
            item |= target(row, rng)
        return item | {key: row[key] for key in ("id", "patient_id", "dataset") if key in row}

    def _key(self) -> dict[str, Any]:
        files = ((str(row["image"]), row.get("slice")) for row in self.data)
        return {
            "preprocess": self.preprocess.stored_dict(),
            "files": fingerprint(files, len(self.data)),
            "versions": versions(PACKAGES) | {"reader": READER},
        }


def _check(data: Sequence[dict[str, Any]], targets: Sequence[Any]) -> None:
    if not data:
        raise VividError("ImageDataset: there are no items")
    for index, row in enumerate(data[:1] if isinstance(data, Items) else data):  # of a manifest, all rows are alike
        if missing := [key for key in ("image", "id") if key not in row]:
            raise VividError(f"ImageDataset: item {index} lacks {missing}")
    for target in targets:
        if check := getattr(target, "check", None):
            check(data)
