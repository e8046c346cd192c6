"""The k-nearest-neighbour probe."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.probes.base import (
    Probe,
    check_width,
    choose,
    columns_taught,
    is_answered,
    mean_loss,
    moments,
    told,
)
from vivid_monai.ums.states import PRESENT

KS = (200, 100, 50, 20, 10, 5, 2, 1)
TEMPERATURE = 0.07


@dataclass(frozen=True)
class KNNProbe(Probe):
    """Votes of the nearest training images that answer a field, weighted by their cosine similarity.

    With similarities s_1 ≥ … ≥ s_k to the k nearest images that answer field f, weights v_j = exp(s_j / 0.07) (Wu et
    al. 2018, arXiv:1805.01978) and the share π_f of present among the training images that answer it,
    ``p_f = (k · Σ_j v_j y_jf / Σ_j v_j + π_f) / (k + 1)``: one vote of the prevalence keeps p off 0 and 1, and the
    probabilities of classes sum to one.

    Attributes:
        z: float32 (N, D) training features, standardised and of length one. states: int64 (N, F).
        shift, scale: (D,) of the standardisation.
        k: int (F,) neighbours of each field.
    """

    z: np.ndarray
    states: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    k: np.ndarray

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """(N, D) → float64 (N, F); 0.5 in untrained columns, 0 for classes without a training image."""
        check_width(x, len(self.shift))
        by_k = vote(self.z, self.states, _direction(x, self.shift, self.scale), sorted(set(self.k.tolist())))
        out = np.stack([by_k[k][:, column] for column, k in enumerate(self.k.tolist())], axis=1)
        if not self.exclusive:
            out[:, list(self.untrained)] = 0.5
        return out


def fit_knn(
    train: Features, validation: Features, *, exclusive: bool = False, neighbours: Sequence[int] = KS
) -> KNNProbe:
    """Keep the training features and choose k for each field, or for all classes, by validation log loss.

    Args:
        neighbours: the k that are tried; one larger than the number of answering images means all of them.

    Raises:
        VividError: nothing to fit or to choose by, a k under 1.
    """
    ks = sorted(neighbours, reverse=True)
    if not ks or min(ks) < 1:
        raise VividError(f"neighbours must be at least 1, not {list(neighbours)}")
    taught = columns_taught(train.states, exclusive=exclusive)
    shift, scale = moments(train.x)
    z = _direction(train.x, shift, scale)
    by_k = vote(z, train.states, _direction(validation.x, shift, scale), ks)
    truth = validation.states[:, taught] == PRESENT
    losses = []
    for k in ks:
        p = by_k[k][:, taught]
        loss = -np.log(np.where(truth, p, 1 if exclusive else 1 - p))
        losses.append(mean_loss(loss, validation.states[:, taught], exclusive))
    chosen, means = choose(losses, validation.states, taught, exclusive=exclusive)
    description = {**told("k", ks, chosen, means, taught), "temperature": TEMPERATURE, "warnings": []}
    untrained = tuple(np.flatnonzero(~taught).tolist())
    return KNNProbe(
        *(z, train.states, shift, scale, np.array(ks)[chosen]),
        exclusive=exclusive,
        untrained=untrained,
        description=description,
    )


def vote(z: np.ndarray, states: np.ndarray, queries: np.ndarray, ks: Sequence[int]) -> dict[int, np.ndarray]:
    """Probabilities (M, F) of every k: z (N, D) and queries (M, D) of length one, states (N, F) of the former."""
    out = {k: np.full((len(queries), states.shape[1]), 0.5) for k in ks}
    answered = is_answered(states)
    # Fields that are answered by the same images have the same neighbours: one search serves them all.
    patterns: dict[bytes, list[int]] = {}
    for column, pattern in enumerate(answered.T):
        patterns.setdefault(pattern.tobytes(), []).append(column)
    for columns in patterns.values():
        rows = np.flatnonzero(answered[:, columns[0]])
        if not rows.size:
            continue
        search = NearestNeighbors(n_neighbors=min(max(ks), len(rows)), metric="cosine", algorithm="brute").fit(z[rows])
        distance, neighbour = search.kneighbors(queries)
        weight = np.exp(-distance.astype(np.float64) / TEMPERATURE)  # of exp(s / T) the constant factor cancels
        total = weight.cumsum(1)
        for column in columns:
            present = states[rows, column] == PRESENT
            share = (weight * present[neighbour]).cumsum(1) / total
            for k in ks:
                used = min(k, len(rows))
                out[k][:, column] = (used * share[:, used - 1] + present.mean()) / (used + 1)
    return out


def _direction(x: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    z = (x - shift) / scale
    length = np.linalg.norm(z, axis=1, keepdims=True)
    return (z / np.where(length > 0, length, 1)).astype(np.float32)
