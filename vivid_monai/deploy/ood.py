"""Out-of-distribution detection: images further from the training images than such images usually are are refused."""

import math
from collections.abc import Callable
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from vivid_monai.deploy.ood_score import CELLS, DIRECTIONS, SIDE, thumbnail_features
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder
from vivid_monai.evaluation.probes.base import moments
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.modules import load_module, save_module

KIND = "assessment"
ENOUGH = 20
"""Patients that are needed to fit, and as many again to find the limit."""
_BEYOND = 10  # validation images beyond the limit that make it sure enough by themselves
_FOLDS = 10
_MOST = 20_000  # training images: a covariance does not become better with more
_ROUNDING = 1e-9
_LEAST = 1e-9  # variance of a direction, where a feature has 1: features that say the same may leave none

Distance = Callable[[NDArray], NDArray[np.float64]]


class OODDetector(nn.Module):
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

    location: Tensor
    whitening: Tensor

    def __init__(self, dim: int, limit: float, accepted: float, n_images: int, n_patients: int) -> None:
        super().__init__()
        self.limit, self.accepted, self.n_images, self.n_patients = limit, accepted, n_images, n_patients
        self.register_buffer("location", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("whitening", torch.zeros(dim, dim, dtype=torch.float64))

    @property
    def config(self) -> dict[str, Any]:
        """The keyword arguments that build it again."""
        names = ("limit", "accepted", "n_images", "n_patients")
        return {"dim": len(self.location), **{name: getattr(self, name) for name in names}}

    @classmethod
    def fit(
        cls, train: NDArray, validation: NDArray, patients: tuple[NDArray, NDArray], *, accepted: float = 0.99
    ) -> Self:
        """Fit the distance on training images and find the limit on images that it was not fitted on.

        These are the validation images. Where fewer than ten of them would lie beyond the limit, one odd image more or
        less would decide it: then every training image joins them, with its distance from the training images of other
        patients (ten folds, as in cross-conformal prediction, Vovk 2015, Ann. Math. Artif. Intell. 74).

        Args:
            train: (N, D) features of training images.
            validation: (M, D) features of images of other patients.
            patients: whose images they are, (N,) and (M,).
            accepted: in (0.5, 1).

        Raises:
            VividError: fewer than :data:`ENOUGH` patients in one of them; features that are all constant; a share
                outside (0.5, 1).
        """
        if not 0.5 < accepted < 1:
            raise VividError(f"accepted={accepted} must lie between 0.5 and 1: the share of images that are answered")
        for name, ids in zip(("training", "validation"), patients, strict=True):
            if (n := len(np.unique(ids))) < ENOUGH:
                raise VividError(f"{n} {name} patients are too few to detect images unlike theirs: {ENOUGH} are needed")
        rows = np.linspace(0, len(train) - 1, min(len(train), _MOST)).astype(int)
        train, patients = train[rows], (patients[0][rows], patients[1])
        distances, n_patients = unfitted(mahalanobis, train, validation, patients, accepted=accepted)
        one = cls(train.shape[1], conformal_limit(distances, accepted), accepted, len(distances), n_patients)
        one.location, one.whitening = (torch.from_numpy(array) for array in _gaussian(train))
        return one

    def distance(self, features: NDArray) -> NDArray[np.float64]:
        """How far images are from the training images: features (N, D) → (N,), from 0 on."""
        return _norm(features, self.location.numpy(), self.whitening.numpy())

    def accepts(self, features: NDArray) -> NDArray[np.bool_]:
        """Which images are to be answered: features (N, D) → (N,)."""
        return self.distance(features) <= self.limit

    def refused(self) -> tuple[float, float, float]:
        """The share of images like the training ones that is refused: expected, and the ends of its 95 % interval.

        The share beyond the k-th of n distances has a Beta(n + 1 − k, k) distribution (Vovk 2012, PMLR 25, section 3).
        Images of one patient are alike: the interval is as wide as of one image per patient.
        """
        beyond = (self.n_images + 1 - _rank(self.n_images, self.accepted)) / (self.n_images + 1)
        low, high = beta((self.n_patients + 1) * beyond, (self.n_patients + 1) * (1 - beyond)).ppf([0.025, 0.975])
        return beyond, float(low), float(high)

    def save(self, path: str | PathLike) -> None:
        """Write it as one safetensors file; errors are those of `save_module`."""
        save_module(self, path, kind=KIND)

    @classmethod
    def load(cls, path: str | PathLike) -> Self:
        """Read a file of :meth:`save`, or of version 1; errors are those of `load_module`."""
        return load_module(path, {KIND: cls}).module


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


class ThumbnailEncoder(Encoder):
    """Thumbnail features (B, WIDTH) of images: what the :class:`OODDetector` takes."""

    kind, architecture = "thumbnail", "hog"

    def __init__(self, preprocess: Preprocess) -> None:
        settings = {"hog": [SIDE, CELLS, DIRECTIONS]}
        super().__init__(nn.Identity(), preprocess, pool="pooled", source="thumbnail", settings=settings)

    def forward(self, images: Tensor) -> Tensor:
        return thumbnail_features(images)
