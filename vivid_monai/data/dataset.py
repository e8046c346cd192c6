"""Items of a manifest as tensors, with randomness that depends on the seed and the draw alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset

from vivid_monai.data.items import Items
from vivid_monai.errors import VividError
from vivid_monai.images.augment import RandomAugmentation
from vivid_monai.images.preprocess import Preprocess, plain_tensors
from vivid_monai.images.read import PACKAGES, image_error_behind
from vivid_monai.storage.arrays import ArrayCache, Chunk, Rows, fingerprint, in_chunks
from vivid_monai.storage.files import versions
from vivid_monai.storage.skipped import Skipped

RARE_FIELDS = ("Fracture", "Pneumonia", "Lung Lesion", "Cardiomegaly", "Enlarged Cardiomediastinum")
"""The fields that the paper (arXiv 2603.09109) asks more often than chance would."""


class FieldSampler:
    """Asks a few answerable fields of an image, with a preference for rare ones.

    The number of fields is drawn evenly from `n`. With probability `p_rare` one of them is drawn from the answerable
    rare fields; the others come from all answerable fields left. Where fewer are answerable than would be asked, all
    of them are asked; an unanswerable field never is.

    Args:
        fields: names of the columns of `states`, in order.
        n: fewest and most fields to ask.
        rare: names among `fields`.
        p_rare: probability in [0, 1].

    Raises:
        VividError: an impossible range or probability, or a rare field that is not among `fields`.
    """

    def __init__(
        self,
        fields: Sequence[str],
        *,
        n: tuple[int, int] = (4, 6),
        rare: Sequence[str] = RARE_FIELDS,
        p_rare: float = 0.6,
    ) -> None:
        if len(n) != 2 or not 1 <= n[0] <= n[1]:
            raise VividError(f"field sampling: n must be (fewest, most) with 1 <= fewest <= most, not {tuple(n)}")
        if not 0 <= p_rare <= 1:
            raise VividError(f"field sampling: p_rare must be between 0 and 1, not {p_rare!r}")
        if unknown := [name for name in rare if name not in fields]:
            raise VividError(f"field sampling: rare fields {unknown} are not among the fields {list(fields)}; set rare")
        self.fields = tuple(fields)
        self.n = (int(n[0]), int(n[1]))
        self.p_rare = p_rare
        self._rare = np.array([name in rare for name in fields])

    def __call__(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw the fields of one image.

        Args:
            states: int (F,), negative = not answerable.
            rng: the only source of randomness.

        Returns:
            bool (F,), True where the field is asked.
        """
        answerable = states >= 0
        count = int(rng.integers(self.n[0], self.n[1], endpoint=True))
        want_rare = rng.random() < self.p_rare
        if answerable.sum() <= count:
            return answerable
        asked = np.zeros(len(self.fields), bool)
        rare = np.flatnonzero(answerable & self._rare)
        if want_rare and len(rare):
            asked[rng.choice(rare)] = True
        others = np.flatnonzero(answerable & ~asked)
        asked[rng.choice(others, count - int(asked.sum()), replace=False)] = True
        return asked


_KEYS = ("image", "states", "id", "patient_id")


class ImageDataset(Dataset):
    """Images with their states, read from files, kept in memory, or mapped from a cache on disk.

    Asked for ``(index, draw)``, or for a plain index (then draw = index), it returns ``{"image": float32 (C, H, W),
    "states": int64 (F,), "asked": bool (F,), "id": str, "patient_id": str}``, or a :class:`Skipped` where the image
    cannot be read. With an augmentation, ``"image"`` is uint8 (slices, H, W) and ``"drawn"``, float32 (8,), says what
    the augmentation is going to do to it. The same seed and draw always give the same item, in whichever process. As
    in every MONAI dataset, a slice or a list of indices gives a ``Subset``.

    Args:
        data: dicts with ``"image"`` (path), ``"states"`` (int (F,), −1 = not answerable), ``"id"``, ``"patient_id"``
            and optionally ``"slice"``, as ``Manifest.items`` makes them.
        preprocess: what becomes of the files.
        augmentation: draws what happens to each image, for batches that it is then done to; None: images are what
            the network takes.
        questions: chooses the fields that are asked; None: all answerable ones.
        seed: of augmentation and questions, >= 0.
        cache: decode all images now and keep them as uint8, 50 kB per image at 224 px: True in memory, a folder on
            disk (:class:`~vivid_monai.storage.arrays.ArrayCache`). Items are equal bit for bit either way.
        num_workers: processes that decode for the cache; 0: threads.

    Raises:
        VividError: no data, a negative seed, items that lack a key or whose states differ in length; with a cache, no
            image that can be read, a folder that cannot be written.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        preprocess: Preprocess,
        *,
        augmentation: RandomAugmentation | None = None,
        questions: FieldSampler | None = None,
        seed: int = 0,
        cache: bool | str | Path = False,
        num_workers: int = 0,
    ) -> None:
        _check(data, questions)
        if seed < 0:
            raise VividError(f"ImageDataset: seed must not be negative, but is {seed}")
        super().__init__(data, preprocess.transform(stages=["stored"]))
        self.preprocess, self.augmentation, self.questions, self.seed = preprocess, augmentation, questions, seed
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
        augment_seed, question_seed = np.random.SeedSequence([self.seed, draw]).generate_state(2)
        drawn = {}
        if self.augmentation is None:
            with plain_tensors():
                image = self._to_input({"image": image})["image"]
        else:
            drawn["drawn"] = self.augmentation.draw(int(augment_seed))
        row = self.data[index]
        states = np.asarray(row["states"], np.int64)
        asked = self.questions(states, np.random.default_rng(question_seed)) if self.questions else states >= 0
        return {
            "image": image,
            **drawn,
            "states": torch.tensor(states),
            "asked": torch.tensor(asked),
            "id": row["id"],
            "patient_id": row["patient_id"],
        }

    def _key(self) -> dict[str, Any]:
        files = ((str(row["image"]), row.get("slice")) for row in self.data)
        return {
            "preprocess": self.preprocess.stored_dict(),
            "files": fingerprint(files, len(self.data)),
            "versions": versions(PACKAGES),
        }


def _check(data: Sequence[dict[str, Any]], questions: FieldSampler | None) -> None:
    if not data:
        raise VividError("ImageDataset: there are no items")
    width = len(questions.fields) if questions else len(data[0].get("states", ()))
    rows = data[:1] if isinstance(data, Items) else data  # of a manifest, all rows are alike
    for index, row in enumerate(rows):
        if missing := [key for key in _KEYS if key not in row]:
            raise VividError(f"ImageDataset: item {index} lacks {missing}")
        if len(row["states"]) != width:
            raise VividError(f"ImageDataset: item {index} ({row['id']}) has {len(row['states'])} states, not {width}")
