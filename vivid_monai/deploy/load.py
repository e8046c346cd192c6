"""A trained model in Python: a bundle, the folder of a run, or an encoder file; image files in, probabilities out."""

import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vivid_monai.deploy.model import BundleModel
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import VividEncoder, load_encoder
from vivid_monai.evaluation.probes import LinearProbe, load_probe
from vivid_monai.images.preprocess import BasePreprocess
from vivid_monai.images.read import ImageError

ENCODER = "pretrained_vit.safetensors"


class Model:
    """A frozen network with the preprocessing of its weights.

    Attributes:
        fields: names of the findings, in order; none for an encoder without a head.
        preprocess: from a file to the network's input.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        preprocess: BasePreprocess,
        fields: tuple[str, ...] = (),
        score: Callable[[Tensor], list[float | None]] | None = None,
    ) -> None:
        """
        Args:
            encode: images (B, C, *spatial), preprocessed → features (B, D).
            score: features (1, D) → a probability for each of the fields, None for one that is not assessed.
        """
        self.fields, self.preprocess = fields, preprocess
        self._encode, self._score, self._prepare = encode, score, preprocess.transform()

    def features(self, image: str | PathLike[str], *, slice: int | None = None) -> NDArray[np.float32]:
        """Pooled features (D,), float32, of an image file.

        Args:
            image: PNG, JPEG or DICOM; NIfTI or a series of DICOM where the preprocessing is of volumes.
            slice: of a NIfTI file, from 0 = most inferior, where the preprocessing is of slices.

        Raises:
            ImageError: the file cannot be used; a VividError.
        """
        return self._features(image, slice)[0].numpy()

    def __call__(self, image: str | PathLike[str], *, slice: int | None = None) -> dict[str, float | None]:
        """Probability of each finding in an image file, None where the model does not assess the finding.

        A bundle's probabilities are calibrated. Nothing is said of images unlike the training images, which
        ``vivid predict`` detects.

        Args:
            image, slice: as for :meth:`features`.

        Raises:
            VividError: an encoder without a head; a file that cannot be used.
        """
        if self._score is None:
            raise VividError("this encoder has no head; load the folder of its run or a bundle, or call features()")
        with torch.no_grad():
            return dict(zip(self.fields, self._score(self._features(image, slice)), strict=True))

    @torch.no_grad()
    def _features(self, image: str | PathLike[str], index: int | None) -> Tensor:
        item = {"image": str(image)} | ({} if index is None else {"slice": index})
        try:
            prepared = self._prepare(item)["image"]
        except RuntimeError as error:  # MONAI's, around what a transform raised
            if isinstance(error.__cause__, ImageError):
                raise error.__cause__ from None
            raise
        return self._encode(torch.as_tensor(prepared)[None]).float()


def load_model(path: str | PathLike[str]) -> Model:
    """Load what was trained.

    Args:
        path: a bundle of ``vivid bundle``; the folder of a run of ``configs/train.json``, whose probabilities are those
            of its probe; or the file of an encoder.

    Raises:
        VividError: none of these, or damaged.
    """
    path = Path(path)
    if (path / "configs" / "metadata.json").is_file():
        return _bundle(path)
    if (path / ENCODER).is_file():
        encoder, probe, fields = load_run(path)

        def score(features: Tensor) -> list[float | None]:
            probabilities = probe.probabilities(features.numpy())[0].tolist()
            return [None if i in probe.untrained else p for i, p in enumerate(probabilities)]

        return Model(encoder, encoder.preprocess, fields, score)
    if path.is_file():
        encoder = load_encoder(str(path))
        return Model(encoder, encoder.preprocess)
    raise VividError(f"{path}: neither a bundle, nor the folder of a run with {ENCODER}, nor the file of an encoder")


def load_run(folder: Path) -> tuple[VividEncoder, LinearProbe, tuple[str, ...]]:
    """The encoder, the probe and its fields of a finished run of ``configs/train.json``.

    Raises:
        VividError: it is not the folder of one, or a file is damaged.
    """
    path = folder / "config.json"
    try:
        pool = json.loads(path.read_text(encoding="utf-8")).get("pool")
    except (OSError, ValueError) as error:
        raise VividError(f"{path}: cannot be read: {error}; give the folder of a finished training run") from error
    encoder = load_encoder(str(folder / ENCODER), pool=pool)
    assert isinstance(encoder, VividEncoder)
    return encoder, *load_probe(folder / "probes" / "pretrained-0.safetensors", encoder=encoder.fingerprint())


def _bundle(folder: Path) -> Model:
    model = BundleModel(folder, runtime="torch")
    rules, head = model.rules.spec["fields"], model.classifier.head

    def score(features: Tensor) -> list[float | None]:
        probabilities = head(features)[0].double().sigmoid().tolist()
        return [None if rule["unanswered"] else p for rule, p in zip(rules, probabilities, strict=True)]

    return Model(model.classifier.features, model.preprocess, model.fields, score)
