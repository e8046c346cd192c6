"""Bootstrap intervals over patients: images of one patient are not independent.

One method for every metric: whole patients are drawn with replacement (Field and Welsh, J. R. Stat. Soc. B 69, 2007),
the standard deviation of the metric over the draws is its standard error, and the interval is value ± t · error. For a
metric between 0 and 1 this is done on the logit scale, where the distribution is nearly symmetric and the ends stay
inside (Agresti, Categorical Data Analysis, 2013, section 3.1). t has as many degrees of freedom as there are patients
of the rarer state, less one: a metric of a rare finding is as unsure as its few cases make it. docs/metrics.md has the
measured coverage of this and of the plain percentile interval, which is too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import t

from vivid_monai.errors import VividError
from vivid_monai.logs import progress
from vivid_monai.metrics.masked import check_scores
from vivid_monai.metrics.statistics import Statistic, auroc
from vivid_monai.ums.states import ABSENT, PRESENT

METHOD = "bootstrap over patients, t interval of its standard error on the logit scale"
_ROUNDING = 1e-12
"""A metric that is nearer than this to 0 or 1 is there; sums of floats do not always get there."""


class Patients:
    """The patients of a test set and their resamples: as many as there are, drawn with replacement.

    Attributes:
        ids: int64 (N,), the patient of each image, from 0.
        n: number of patients.

    Raises:
        VividError: no images, or fewer than two resamples.
    """

    def __init__(self, groups: ArrayLike, *, n_resamples: int = 1000, seed: int = 0) -> None:
        names = np.asarray(groups)
        if names.ndim != 1 or not len(names):
            raise VividError("no images to resample: one patient is needed for each image")
        if n_resamples < 2:
            raise VividError(f"a bootstrap needs at least 2 resamples, not {n_resamples}")
        known, self.ids = np.unique(names, return_inverse=True)
        self.n = len(known)
        rng = np.random.default_rng(seed)
        self._weights = np.empty((n_resamples + 1, self.n), dtype=np.int32)
        self._weights[0] = 1
        for row in self._weights[1:]:
            row[:] = np.bincount(rng.integers(0, self.n, self.n), minlength=self.n)

    def resample(self, statistics: Sequence[Statistic], cases: ArrayLike) -> "Resampled":
        """Every statistic on the patients as they are and on every resample.

        Args:
            statistics: one for each field.
            cases: patients whom the metric's error rests on, for each field: those of the rarer state (:meth:`cases`)
                where both are needed, else those who are answered (:meth:`answered`).
        """
        bar = progress(statistics, desc="bootstrap", unit="field", delay=2, leave=False)
        values = np.stack([statistic(self._weights) for statistic in bar], axis=1)
        return Resampled(values[0], values[1:], np.asarray(cases, dtype=np.float64))

    def cases(self, states: NDArray[np.int64]) -> NDArray[np.int64]:
        """Patients of the rarer of present and absent, (F,), for states (N, F)."""
        return np.array([min(len(np.unique(self.ids[c == code])) for code in (ABSENT, PRESENT)) for c in states.T])

    def answered(self, states: NDArray[np.int64]) -> NDArray[np.int64]:
        """Patients with an image that is present or absent, (F,), for states (N, F)."""
        return np.array([len(np.unique(self.ids[(c == ABSENT) | (c == PRESENT)])) for c in states.T])


@dataclass(frozen=True)
class Resampled:
    """A metric of some fields: ``value`` (F,), ``draws`` (R, F) and ``cases`` (F,), what its error rests on.

    NaN where the metric is not defined.
    """

    value: NDArray[np.float64]
    draws: NDArray[np.float64]
    cases: NDArray[np.float64]

    @staticmethod
    def average(runs: Sequence["Resampled"]) -> "Resampled":
        """The mean over runs (seeds) on the same images. Its interval tells how sure the test patients make one of
        this mean; the runs themselves show what another run would give."""
        if len(runs) == 1:
            return runs[0]
        value, draws = (np.mean([getattr(run, name) for run in runs], axis=0) for name in ("value", "draws"))
        return Resampled(value, draws, runs[0].cases)

    def macro(self, columns: Sequence[int]) -> "Resampled":
        """The mean over some of the fields, as one field; of the fields that a resample defines. NaN for none."""
        kept = list(columns)
        if not kept:
            return Resampled(np.full(1, np.nan), np.full((len(self.draws), 1), np.nan), np.zeros(1))
        draws = self.draws[:, kept]
        defined = ~np.isnan(draws)
        n = defined.sum(axis=1)
        mean = np.divide(np.where(defined, draws, 0).sum(axis=1), n, out=np.full(len(draws), np.nan), where=n > 0)
        return Resampled(self.value[kept].mean(keepdims=True), mean[:, None], self.cases[kept].mean(keepdims=True))

    def __sub__(self, other: "Resampled") -> "Resampled":
        """The difference of two metrics on the same resamples, so that what is common to both cancels."""
        return Resampled(self.value - other.value, self.draws - other.draws, np.minimum(self.cases, other.cases))

    def interval(self, level: float = 0.95, *, bounded: bool = True) -> NDArray[np.float64]:
        """Lower and upper end, (F, 2).

        NaN where there is no value, where fewer than two patients have the rarer state, and where the value lies at a
        bound of the scale, as with perfect separation: no resample differs from it, and the bootstrap knows nothing of
        what more patients would show.

        Args:
            level: coverage that is aimed at.
            bounded: the metric lies between 0 and 1; False for differences, which lie between −1 and 1.
        """
        fields = zip(self.value, self.draws.T, self.cases, strict=True)
        return np.array([_interval(*field, level, bounded) for field in fields])


def difference_over_runs(
    first: Sequence[Resampled], second: Sequence[Resampled], level: float = 0.95
) -> tuple[float, float, float]:
    """The mean difference of one field between two recipes, with an interval over the runs (seeds) **and** patients.

    What another set of patients and another set of seeds would change are two independent errors of the mean
    difference: its standard deviation over the resampled patients, and that of the runs' own differences by √S. The
    second also holds part of what both do together, so the interval is rather too wide than too narrow. The degrees of
    freedom of t are those of Satterthwaite (Biometrics Bulletin 2, 1946).

    Args:
        first, second: as many runs each, S, on the same resamples of the same patients, of one field each.

    Returns:
        Value, low and high. Without an interval (NaN) where :meth:`Resampled.interval` has none, and of a single run,
        which does not show what another would give.
    """
    runs = [a - b for a, b in zip(first, second, strict=True)]
    mean, of_runs = Resampled.average(runs), np.array([run.value[0] for run in runs])
    value, cases = float(mean.value[0]), float(mean.cases[0])
    draws = mean.draws[~np.isnan(mean.draws)]
    if np.isnan(value) or len(runs) < 2 or cases < 2 or len(draws) < 2:
        return value, np.nan, np.nan
    patients, seeds = draws.var(ddof=1), of_runs.var(ddof=1) / len(runs)
    if not patients + seeds:
        return value, value, value
    freedom = (patients + seeds) ** 2 / (patients**2 / (cases - 1) + seeds**2 / (len(runs) - 1))
    half = t.ppf((1 + level) / 2, freedom) * np.sqrt(patients + seeds)
    return value, float(max(value - half, -1)), float(min(value + half, 1))


def _interval(
    value: float, draws: NDArray[np.float64], cases: float, level: float, bounded: bool
) -> tuple[float, float]:
    draws = draws[~np.isnan(draws)]
    if np.isnan(value) or cases < 2 or len(draws) < 2:
        return np.nan, np.nan
    quantile = t.ppf((1 + level) / 2, cases - 1)
    if not bounded:
        error = draws.std(ddof=1)
        return max(value - quantile * error, -1.0), min(value + quantile * error, 1.0)
    if not _ROUNDING < value < 1 - _ROUNDING:
        return np.nan, np.nan
    # A resample may reach 0 or 1, where the logit has no value: it counts as half as far from there as any other is.
    gaps = np.concatenate([draws, 1 - draws, [value, 1 - value]])
    edge = gaps[gaps > _ROUNDING].min() / 2
    error = logit(np.clip(draws, edge, 1 - edge)).std(ddof=1)
    centre = logit(value)
    return float(expit(centre - quantile * error)), float(expit(centre + quantile * error))


def auroc_resamples(patients: Patients, scores: ArrayLike, states: ArrayLike) -> Resampled:
    """AUROC of every field, resampled, for ``scores`` (N, F), or (S, N, F) of S runs on the same images.

    Raises:
        VividError: as :func:`~vivid_monai.metrics.masked.masked_auroc`; as many patients as images are needed.
    """
    values, ids = np.asarray(scores, dtype=np.float64), patients.ids
    resampled = []
    for run in values if values.ndim == 3 else [values]:
        checked, codes = check_scores(run, states)
        if len(codes) != len(ids):
            raise VividError(f"{len(ids)} patients for {len(codes)} images: one is needed for each image")
        fields = [auroc(*columns, ids) for columns in zip(checked.T, codes.T, strict=True)]
        resampled.append(patients.resample(fields, patients.cases(codes)))
    return Resampled.average(resampled)
