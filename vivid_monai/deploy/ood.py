"""Out-of-distribution detection: images further from the training images than such images usually are are refused."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import save
from scipy.stats import beta
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from vivid_monai.deploy.ood_score import CELLS, DIRECTIONS, SIDE, thumbnail_features
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder
from vivid_monai.evaluation.probes.base import moments
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.checkpoint import CheckpointFile, read_checkpoint
from vivid_monai.storage.files import whole_file

FORMAT = "vivid-assessment"
VERSION = 1
ENOUGH = 20
"""Patients that are needed to fit, and as many again to find the limit."""
_BEYOND = 10  # validation images beyond the limit that make it sure enough by themselves
_FOLDS = 10
_MOST = 20_000  # training images: a covariance does not become better with more

_ROUNDING = 1e-9
_LEAST = 1e-9  # variance of a direction, where a feature has 1: features that say the same may leave none

Distance = Callable[[NDArray], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class OODDetector:
    """The distance of an image from the training images, and how far is too far.

    The distance is Mahalanobis' on :func:`~vivid_monai.deploy.ood_score.thumbnail_features`, every number scaled first,
    the covariance shrunk as Ledoit and Wolf do (J. Multivar. Anal. 88, 2004). The network's own features (Lee et al.
    2018, arXiv:1807.03888) separate less well: it may have learned to ignore what shows that an image is no chest
    (docs/deploy.md). The limit is a conformal one (Laxhammar and Falkman 2015, Ann. Math. Artif. Intell. 74): of n
    distances of images that were not fitted on, the ⌈(n + 1) · accepted⌉-th smallest, or the largest. An image of
    the same kind is then refused with probability 1 − accepted, whatever the distances' distribution.

    Attributes:
        location: float64 (D,), the mean of the training images.
        whitening: float64 (D, D); the distance of x is the norm of (x − location) · whitening.
        limit: the largest distance that is accepted.
        accepted: the share of images like the training ones that is to be accepted.
        n_images, n_patients: what the limit rests on.
    """

    location: NDArray[np.float64]
    whitening: NDArray[np.float64]
    limit: float
    accepted: float
    n_images: int
    n_patients: int

    @classmethod
    def fit(
        cls,
        train: NDArray,
        validation: NDArray,
        *,
        accepted: float = 0.99,
        patients: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> Self:
        """Fit the distance on training images and find the limit on images that it was not fitted on.

        These are the validation images. Where fewer than ten of them would lie beyond the limit, one odd image more or
        less would decide it: then every training image joins them, with its distance from the training images of other
        patients (ten folds, as in cross-conformal prediction, Vovk 2015, Ann. Math. Artif. Intell. 74).

        Args:
            train: (N, D) features of training images.
            validation: (M, D) features of images of other patients.
            accepted: in (0.5, 1).
            patients: whose images they are, (N,) and (M,); None: each is another patient's.

        Raises:
            VividError: not two arrays of finite numbers of the same width; fewer than :data:`ENOUGH` patients in one
                of them, or patients in both; features that are all constant; a share outside (0.5, 1).
        """
        if not 0.5 < accepted < 1:
            raise VividError(f"accepted={accepted} must lie between 0.5 and 1: the share of images that are answered")
        whose = [np.asarray(p) for p in patients or (np.arange(len(train)), -1 - np.arange(len(validation)))]
        for name, part, ids in zip(("training", "validation"), (train, validation), whose, strict=True):
            _check(part, np.shape(train)[-1:], f"{name} features")
            if ids.shape != (len(part),):
                raise VividError(f"{len(part)} {name} images and patients of shape {ids.shape} do not go together")
            if (n := len(np.unique(ids))) < ENOUGH:
                raise VividError(f"{n} {name} patients are too few to detect images unlike theirs: {ENOUGH} are needed")
        if both := set(whose[0].tolist()) & set(whose[1].tolist()):
            raise VividError(f"{len(both)} patients are in training and validation; split by patient")
        rows = np.linspace(0, len(train) - 1, min(len(train), _MOST)).astype(int)
        train, whose[0] = np.asarray(train)[rows], whose[0][rows]
        location, whitening = _gaussian(train)
        distances, n_patients = unfitted(mahalanobis, train, validation, (whose[0], whose[1]), accepted=accepted)
        return cls(
            location=location,
            whitening=whitening,
            limit=conformal_limit(distances, accepted),
            accepted=accepted,
            n_images=len(distances),
            n_patients=n_patients,
        )

    def distance(self, features: NDArray) -> NDArray[np.float64]:
        """How far images are from the training images: features (N, D) → (N,), from 0 on.

        Raises:
            VividError: features of another width, or that are not finite.
        """
        _check(features, self.location.shape, "features")
        return _norm(features, self.location, self.whitening)

    def accepts(self, features: NDArray) -> NDArray[np.bool_]:
        """Which images are to be answered: features (N, D) → (N,).

        Raises:
            VividError: as :meth:`distance`.
        """
        return self.distance(features) <= self.limit

    def refused(self, level: float = 0.95) -> tuple[float, float, float]:
        """The share of images like the training ones that is refused: expected, and the ends of its interval.

        The share beyond the k-th of n distances has a Beta(n + 1 − k, k) distribution (Vovk 2012, PMLR 25, section 3).
        Images of one patient are alike: the interval is as wide as of one image per patient.
        """
        beyond = (self.n_images + 1 - _rank(self.n_images, self.accepted)) / (self.n_images + 1)
        spread = beta((self.n_patients + 1) * beyond, (self.n_patients + 1) * (1 - beyond))
        return beyond, float(spread.ppf((1 - level) / 2)), float(spread.ppf((1 + level) / 2))

    def save(self, path: str | PathLike) -> None:
        """Write it as one safetensors file, whole or not at all.

        Raises:
            VividError: the path does not end in `.safetensors`, or the file cannot be written.
        """
        if not str(path).endswith(".safetensors"):
            raise VividError(f"{path}: it is saved as .safetensors")
        settings = {name: getattr(self, name) for name in _SETTINGS}
        metadata = {FORMAT: json.dumps({"version": VERSION, **settings})}  # safetensors gives several no order
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        with whole_file(path) as part:
            part.write_bytes(save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | PathLike) -> Self:
        """Read a file of :meth:`save`; no code in it is run.

        Raises:
            VividError: no such file, broken, not written by :meth:`save`, or with values that cannot be.
        """
        file = read_checkpoint(path)
        settings = _settings(file)
        shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
        width = next(iter(shapes.get("location", ())), 0)
        if shapes != {"location": (width,), "whitening": (width, width)} or not width:
            raise VividError(f"{file.path}: its tensors are not those of an OOD detector but {shapes}; write it again")
        arrays = {name: tensor.numpy() for name, tensor in file.tensors.items()}
        if not all(array.dtype == np.float64 and np.isfinite(array).all() for array in arrays.values()):
            raise VividError(f"{file.path}: its tensors are not finite float64 numbers; write it again")
        return cls(arrays["location"], arrays["whitening"], **settings)


_SETTINGS = {"limit": float, "accepted": float, "n_images": int, "n_patients": int}
_ARRAYS = ("location", "whitening")


def mahalanobis(train: NDArray) -> Distance:
    """The distance from training features (N, D), as a function of features (N, D).

    Raises:
        VividError: every feature is constant.
    """
    location, whitening = _gaussian(train)
    return lambda features: _norm(features, location, whitening)


def unfitted(
    fit: Callable[[NDArray], Distance],
    train: NDArray,
    validation: NDArray,
    patients: tuple[NDArray, NDArray],
    *,
    accepted: float,
) -> tuple[NDArray[np.float64], int]:
    """Distances of images that were not fitted on, as :meth:`OODDetector.fit` says, and how many patients have them."""
    distances = fit(train)(validation)
    n_patients = len(np.unique(patients[1]))
    if len(validation) * (1 - accepted) >= _BEYOND - _ROUNDING:
        return distances, n_patients
    held_out = np.empty(len(train))
    for fitted, left in GroupKFold(_FOLDS).split(train, groups=patients[0]):
        held_out[left] = fit(train[fitted])(train[left])
    return np.concatenate([distances, held_out]), n_patients + len(np.unique(patients[0]))


def conformal_limit(distances: NDArray[np.float64], accepted: float) -> float:
    """The largest distance (of any) that is accepted, after the distances (n,) of images that were not fitted on."""
    return float(np.sort(distances)[_rank(len(distances), accepted) - 1])


def _gaussian(train: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    location, scale = moments(train)
    if np.isinf(scale).all():
        raise VividError("every training feature is constant: the weights are damaged or the images all the same")
    covariance = LedoitWolf(store_precision=False, assume_centered=True).fit((train - location) / scale).covariance_
    variances, directions = np.linalg.eigh(covariance)
    return location, directions / np.sqrt(np.maximum(variances, _LEAST)) / scale[:, None]


def _norm(features: NDArray, location: NDArray, whitening: NDArray) -> NDArray[np.float64]:
    return np.linalg.norm((np.asarray(features, np.float64) - location) @ whitening, axis=1)


def _rank(n: int, accepted: float) -> int:
    """Which of n distances, in order and from 1 on, is the limit."""
    return min(n, math.ceil((n + 1) * accepted - _ROUNDING))


def _check(features: Any, width: tuple[int, ...], name: str) -> None:
    shape = np.shape(features)
    if len(shape) != 2 or shape[1:] != width or not shape[1]:
        raise VividError(f"{name} must be (N, {width[0] if width else 'D'}), not {shape}; they are of another network")
    if not (finite := np.isfinite(features).all(1)).all():
        raise VividError(f"{name} of image {np.argmin(finite)} are not finite: the weights or the image are damaged")


def _settings(file: CheckpointFile) -> dict[str, Any]:
    if FORMAT not in file.metadata:
        raise VividError(f"{file.path}: was not written by OODDetector.save")
    try:
        settings = json.loads(file.metadata[FORMAT])
        if (version := settings.pop("version")) != VERSION:
            raise VividError(f"{file.path}: has version {version!r}, this package reads {VERSION}; update it")
        right = settings.keys() == _SETTINGS.keys() and all(type(settings[k]) is kind for k, kind in _SETTINGS.items())
        right = right and 0.5 < settings["accepted"] < 1 and 0 <= settings["limit"] < math.inf
        right = right and settings["n_images"] >= settings["n_patients"] > 0
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise VividError(f"{file.path}: its metadata is broken ({error!r}); write it again") from error
    if not right:
        raise VividError(f"{file.path}: its settings are not those of an OOD detector; write it again")
    return settings


class ThumbnailEncoder(Encoder):
    """Thumbnail features (B, WIDTH) of images: what the :class:`OODDetector` takes."""

    kind, architecture = "thumbnail", "hog"

    def __init__(self, preprocess: Preprocess) -> None:
        settings = {"hog": [SIDE, CELLS, DIRECTIONS]}
        super().__init__(nn.Identity(), preprocess, pool="pooled", source="thumbnail", settings=settings)

    def forward(self, images: Tensor) -> Tensor:
        return thumbnail_features(images)
