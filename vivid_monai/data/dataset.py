"""Items of a manifest as tensors, with randomness that depends on the seed and the draw alone."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from monai.transforms import Compose
from tqdm import tqdm

from vivid_monai.data.images import image_error_behind
from vivid_monai.data.plain import plain_tensors
from vivid_monai.data.questions import FieldSampler
from vivid_monai.data.skipped import Skipped
from vivid_monai.data.steps import ToBytesd
from vivid_monai.errors import VividError

_KEYS = ("image", "states", "id", "patient_id")


class ImageDataset(Dataset):
    """Images with their states, read from files or kept in memory.

    Asked for ``(index, draw)``, or for a plain index (then draw = index), it returns ``{"image": float32 (C, H, W),
    "states": int64 (F,), "asked": bool (F,), "id": str, "patient_id": str}``, or a :class:`Skipped` where the image
    cannot be read. The same seed and draw always give the same item, in whichever process. As in every MONAI dataset,
    a slice or a list of indices gives a ``Subset``.

    Args:
        data: dicts with ``"image"`` (path), ``"states"`` (int (F,), −1 = not answerable), ``"id"``, ``"patient_id"``
            and optionally ``"slice"``, as ``Manifest.items`` makes them.
        transform: from :meth:`Preprocess.transform` or :func:`train_transform`.
        questions: chooses the fields that are asked; None: all answerable ones.
        seed: of augmentation and questions, >= 0.
        cache: read all images now and keep the deterministic part of the transform, as uint8: 50 kB per image at
            224 px. Cached and uncached items are equal bit for bit.

    Raises:
        VividError: no data, a negative seed, items that lack a key or whose states differ in length, a lazy transform,
            or one without the step that makes an image uint8 where a cache is wanted.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Compose,
        *,
        questions: FieldSampler | None = None,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        _check(data, questions)
        if seed < 0:
            raise VividError(f"ImageDataset: seed must not be negative, but is {seed}")
        if transform.lazy:
            raise VividError("ImageDataset: a lazy Compose would resample differently in worker processes")
        super().__init__(data, transform.flatten())
        self.questions = questions
        self.seed = seed
        self._split = 0
        self._cached: np.ndarray | None = None
        self._unreadable: dict[int, Skipped] = {}
        if cache:
            self._fill()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, tuple):
            return self._item(*index)
        return super().__getitem__(index)

    def _transform(self, index: int) -> dict[str, Any] | Skipped:
        index = range(len(self.data))[index]
        return self._item(index, index)

    def _item(self, index: int, draw: int) -> dict[str, Any] | Skipped:
        augment_seed, question_seed = np.random.SeedSequence([self.seed, draw]).generate_state(2)
        if self._cached is None:
            source = self._source(index)
        elif index in self._unreadable:
            return self._unreadable[index]
        else:
            source = {"image": torch.from_numpy(self._cached[index])}
        self.transform.set_random_state(seed=int(augment_seed))
        image = self._apply(index, source, start=self._split)
        if isinstance(image, Skipped):
            return image

        row = self.data[index]
        states = np.asarray(row["states"], np.int64)
        rng = np.random.default_rng(question_seed)
        asked = self.questions(states, rng) if self.questions else states >= 0
        return {
            "image": image,
            "states": torch.tensor(states),
            "asked": torch.tensor(asked),
            "id": row["id"],
            "patient_id": row["patient_id"],
        }

    def _source(self, index: int) -> dict[str, Any]:
        return {key: self.data[index][key] for key in ("image", "slice") if key in self.data[index]}

    def _apply(self, index: int, source: dict[str, Any], **part: Any) -> torch.Tensor | Skipped:
        try:
            with plain_tensors():
                image = self.transform(source, **part)["image"]
        except Exception as error:
            if (unreadable := image_error_behind(error)) is None:
                raise
            return Skipped(path=str(self.data[index]["image"]), reason=str(unreadable))
        return image

    def _fill(self) -> None:
        last = self.transform.get_index_of_first(lambda step: isinstance(step, ToBytesd))
        if last is None:
            raise VividError("ImageDataset: only a transform with a ToBytesd step, as of Preprocess, can be cached")

        def read(index: int) -> torch.Tensor | Skipped:
            return self._apply(index, self._source(index), end=last + 1)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = pool.map(read, range(len(self.data)))
            for index, image in enumerate(tqdm(images, "images into memory", len(self.data), leave=False)):
                if isinstance(image, Skipped):
                    self._unreadable[index] = image
                    continue
                if self._cached is None:
                    self._cached = np.zeros((len(self.data), *image.shape), np.uint8)
                self._cached[index] = image.numpy()
        if self._cached is None:
            raise VividError(f"none of {len(self.data)} images can be read; the first: {self._unreadable[0].reason}")
        self._split = last + 1


def _check(data: Sequence[dict[str, Any]], questions: FieldSampler | None) -> None:
    if not data:
        raise VividError("ImageDataset: there are no items")
    width = len(questions.fields) if questions else len(data[0].get("states", ()))
    for index, row in enumerate(data):
        if missing := [key for key in _KEYS if key not in row]:
            raise VividError(f"ImageDataset: item {index} lacks {missing}")
        if len(row["states"]) != width:
            raise VividError(f"ImageDataset: item {index} ({row['id']}) has {len(row['states'])} states, not {width}")
