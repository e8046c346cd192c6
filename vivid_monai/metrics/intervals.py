"""Bootstrap intervals for AUROC that resample patients, since images of one patient are not independent.

Percentile intervals: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; whole clusters are
resampled as in Field and Welsh, Bootstrapping clustered data, J. R. Stat. Soc. B 69, 2007.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from vivid_monai.errors import VividError
from vivid_monai.metrics.masked import check_scores, counts, macro, masked_auroc
from vivid_monai.metrics.weighted import RankedField


class AUROCIntervals(NamedTuple):
    """``fields`` (F, 2) and ``macro`` (2,): lower and upper end; NaN where there is no AUROC.

    ``excluded``: the fields that the macro leaves out. Their own intervals are given, but rest on few cases.
    """

    fields: NDArray[np.float64]
    macro: NDArray[np.float64]
    excluded: tuple[int, ...]


class PairedAUROC(NamedTuple):
    """A difference in macro-AUROC, its interval (2,), and the fields that the macro leaves out."""

    difference: float
    interval: NDArray[np.float64]
    excluded: tuple[int, ...]


def bootstrap_auroc(
    scores: ArrayLike,
    states: ArrayLike,
    groups: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    min_present: int = 10,
    min_absent: int = 10,
) -> AUROCIntervals:
    """Return percentile intervals of each field's AUROC and of their macro mean.

    ``scores`` and ``states`` (N, F) as for `masked_auroc`; ``groups`` (N,) the patient of each image. Each resample
    draws as many patients as there are, with replacement, the same for all fields. Resamples in which a field lost a
    class count neither for that field nor in its macro. Raises VividError on arguments that do not fit.

    ``scores`` may also be (S, N, F), of S runs on the same images (seeds, say): the AUROC is then the mean over the
    runs, and the interval is that of this mean. It tells how sure the test patients make one of it; what another run
    would give is told by the runs themselves.
    """
    runs, codes = _check_runs(scores, states)
    resampled = _resample(runs, codes, groups, n_resamples, seed, level)
    excluded = macro(_mean_auroc(runs, codes), *counts(codes), min_present, min_absent)[1]
    fields = np.array([_interval(column, level) for column in resampled.T]).reshape(-1, 2)
    return AUROCIntervals(fields, _interval(_macros(resampled, excluded), level), excluded)


def paired_bootstrap_auroc(
    a: ArrayLike,
    b: ArrayLike,
    states: ArrayLike,
    groups: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    min_present: int = 10,
    min_absent: int = 10,
) -> PairedAUROC:
    """Return macro-AUROC of scores ``a`` minus that of ``b`` (N, F) on the same images, with its percentile interval.

    Both see the same resampled patients, so what is common to both cancels. Other arguments as in `bootstrap_auroc`,
    several runs (S, N, F) of either included.
    """
    first, codes = _check_runs(a, states)
    second, _ = _check_runs(b, states)
    bounds = (*counts(codes), min_present, min_absent)
    value_a, excluded = macro(_mean_auroc(first, codes), *bounds)
    value_b, _ = macro(_mean_auroc(second, codes), *bounds)
    resampled_a, resampled_b = (_resample(runs, codes, groups, n_resamples, seed, level) for runs in (first, second))
    differences = _macros(resampled_a, excluded) - _macros(resampled_b, excluded)
    return PairedAUROC(value_a - value_b, _interval(differences, level), excluded)


def _check_runs(scores: ArrayLike, states: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return scores as (S, N, F), one run or several, and states (N, F)."""
    values = np.asarray(scores, dtype=np.float64)
    runs = values if values.ndim == 3 else values[None]
    if not len(runs):
        raise VividError("no run to measure: the scores are empty")
    checked = [check_scores(run, states) for run in runs]
    return np.stack([run for run, _ in checked]), checked[0][1]


def _mean_auroc(runs: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.mean([masked_auroc(run, codes) for run in runs], axis=0)


def _resample(
    runs: NDArray[np.float64], codes: NDArray[np.int64], groups: ArrayLike, n_resamples: int, seed: int, level: float
) -> NDArray[np.float64]:
    """Return the AUROC (R, F) of every field in every resample of the patients, as the mean over the runs (S, N, F)."""
    patients = np.asarray(groups)
    if not len(codes):
        raise VividError("no images to resample: the scores are empty")
    if patients.shape != (len(codes),):
        raise VividError(f"groups {patients.shape} must give one patient for each of {len(codes)} images")
    if n_resamples < 1 or not 0 < level < 1:
        raise VividError(f"need n_resamples ≥ 1 and 0 < level < 1, not {n_resamples} and {level}")
    known, ids = np.unique(patients, return_inverse=True)
    weights = _weights(len(known), n_resamples, seed)
    out = np.empty((n_resamples, codes.shape[1]))
    for field in tqdm(range(codes.shape[1]), desc="bootstrap", unit="field", delay=2, leave=False):
        per_run = [RankedField(run[:, field], codes[:, field], ids).auroc(weights) for run in runs]
        out[:, field] = np.mean(per_run, axis=0)
    return out


def _weights(n_patients: int, n_resamples: int, seed: int) -> NDArray[np.int32]:
    """Return how often each patient is drawn in each resample, (R, patients)."""
    rng = np.random.default_rng(seed)
    weights = np.empty((n_resamples, n_patients), dtype=np.int32)
    for row in weights:
        row[:] = np.bincount(rng.integers(0, n_patients, n_patients), minlength=n_patients)
    return weights


def _macros(resampled: NDArray[np.float64], excluded: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the macro mean (R,) of each resample over the fields that are not excluded and have a value in it."""
    kept = np.delete(resampled, excluded, axis=1)
    defined = ~np.isnan(kept)
    n = defined.sum(axis=1)
    return np.divide(np.where(defined, kept, 0).sum(axis=1), n, out=np.full(len(kept), np.nan), where=n > 0)


def _interval(values: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return np.full(2, np.nan)
    return np.quantile(defined, ((1 - level) / 2, (1 + level) / 2))
