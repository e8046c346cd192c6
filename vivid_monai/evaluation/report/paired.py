"""Encoders of several runs on the same test images: macro averages over the fields they share, paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vivid_monai.evaluation.results import Difference, Estimate
from vivid_monai.metrics import statistics as sums
from vivid_monai.metrics.intervals import Patients, Resampled
from vivid_monai.metrics.statistics import RankedField

RANKING = {"auroc": "auroc", "ap": "average_precision"}


@dataclass(frozen=True)
class Measured:
    """One metric of one encoder on every resample, the mean over its seeds, and each seed's value."""

    mean: Resampled
    per_seed: tuple[float, ...]

    def estimate(self, level: float) -> Estimate:
        return _estimate(self.mean, level, bounded=True, per_seed=self.per_seed)


def measure_all(
    scores: Mapping[str, NDArray], states: NDArray, patients: Patients, *, kept: Sequence[int], exclusive: bool
) -> dict[str, dict[str, Measured]]:
    """Metric → encoder → numbers, on the same resamples for all.

    Args:
        scores: encoder → probabilities (S, N, F).
        states: (N, F).
        patients: of the N images.
        kept: columns that the macro averages are over.
        exclusive: exactly one of the F fields is present in every image, so that accuracy has a meaning.
    """
    metrics = [*(RANKING if kept else []), *(["accuracy"] if exclusive else [])]
    measured: dict[str, dict[str, Measured]] = {metric: {} for metric in metrics}
    steps = [(metric, name) for metric in metrics for name in scores]
    for metric, name in tqdm(steps, "resampling patients", delay=2, leave=False):
        measured[metric][name] = _measure(metric, scores[name], states, patients, kept)
    return measured


def paired_differences(measured: Mapping[str, Mapping[str, Measured]], level: float) -> list[Difference]:
    """The first encoder against every other one."""
    differences = []
    for other in list(next(iter(measured.values())))[1:]:
        for metric, by_name in measured.items():
            first = next(iter(by_name))
            between = by_name[first].mean - by_name[other].mean
            differences.append(Difference(first, other, metric, _estimate(between, level, bounded=False)))
    return differences


def _measure(metric: str, scores: NDArray, states: NDArray, patients: Patients, kept: Sequence[int]) -> Measured:
    if metric == "accuracy":
        truth = states.argmax(1)
        runs = [
            patients.resample([sums.accuracy(seed.argmax(1), truth, patients.ids)], [patients.n]) for seed in scores
        ]
    else:
        cases = patients.cases(states[:, kept]).tolist()
        runs = []
        for seed in scores:
            ranked = [RankedField(seed[:, f], states[:, f], patients.ids) for f in kept]
            by_field = patients.resample([getattr(one, RANKING[metric]) for one in ranked], cases)
            runs.append(by_field.macro(range(len(kept))))
    return Measured(Resampled.average(runs), tuple(float(run.value[0]) for run in runs))


def _estimate(mean: Resampled, level: float, *, bounded: bool, per_seed: Sequence[float] = ()) -> Estimate:
    low, high = mean.interval(level, bounded=bounded)[0]
    value, low, high = (None if np.isnan(one) else float(one) for one in (mean.value[0], low, high))
    return Estimate(value, low, high, tuple(per_seed))
