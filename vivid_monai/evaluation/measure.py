"""All metrics of given scores on the test images, with intervals over patients, as one long table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix
from tqdm import tqdm

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.results import ALL, CLASS_METRICS, MACRO, METRICS, Results, Row, images_digest, warnings_of
from vivid_monai.metrics import statistics
from vivid_monai.metrics.intervals import METHOD, Patients, Resampled
from vivid_monai.metrics.masked import best_f1_thresholds, check_scores, counts
from vivid_monai.metrics.statistics import RankedField, Statistic
from vivid_monai.ums.states import ABSENT, NULL, PRESENT, UNCERTAIN

LEVEL = 0.95
PAIRED = ("auroc", "ap")
"""Metrics whose macro averages are compared between encoders."""

Runs = dict[str, list[Resampled]]
"""Metric → the metric of every field on every resample, of each seed."""


@dataclass(frozen=True)
class Scored:
    """Probabilities of one encoder, however they were made: by probes, by text prompts, by retrieval.

    Attributes:
        validation: probabilities (S, M, F) of the validation images, for thresholds.
        test: probabilities (S, N, F) of the test images.
        encoder: ``Encoder.describe()``. probes: ``Probe.description`` of each seed.
        untrained: columns without a fitted head.
    """

    validation: np.ndarray
    test: np.ndarray
    encoder: dict[str, Any]
    probes: list[dict[str, Any]]
    untrained: tuple[int, ...] = ()


def measure(
    scored: Mapping[str, Scored],
    *,
    task: str,
    fields: Sequence[str],
    exclusive: bool,
    validation_states: np.ndarray,
    test: Features,
    seeds: Sequence[int],
    min_present: int = 10,
    min_absent: int = 10,
    n_resamples: int = 1000,
    seed: int = 0,
    skipped: Sequence[tuple[str, str]] = (),
) -> Results:
    """Measure encoders on the same test images.

    Args:
        scored: encoder name → its probabilities.
        task: name of the task.
        fields: names of the columns, F.
        exclusive: exactly one field is present in every image.
        validation_states: (M, F), of the images behind ``Scored.validation``.
        test: states, patients and ids of the test images.
        seeds: of the probes, S.
        min_present, min_absent: what a field needs of each on the test images to enter the macro averages. A field
            whose head could not be fitted for some encoder stays out too.
        n_resamples, seed: of the bootstrap over patients.
        skipped: images of any split that could not be read, ``(path, reason)``.

    Raises:
        VividError: no field has enough test images; probabilities that are missing, do not fit the states or lie
            outside [0, 1]; ``exclusive`` and a test image without exactly one present class.
    """
    n_present, n_absent = counts(test.states)
    names = list(fields)
    excluded = _excluded(names, n_present, n_absent, min_present, min_absent, scored)
    if len(excluded) == len(names):
        first = next(iter(excluded.items()))
        raise VividError(
            f"{task}: no field can be measured on its {len(test.states)} test images ({first[0]}: {first[1]}, and so "
            "on); lower --min_present and --min_absent, or prepare a larger test fraction"
        )
    kept = [column for column, name in enumerate(names) if name not in excluded]
    for name, one in scored.items():
        _check(f"{name}, validation", one.validation, validation_states, len(seeds))
        _check(f"{name}, test", one.test, test.states, len(seeds))
    if exclusive:
        one = ((test.states == PRESENT).sum(1) == 1) & ((test.states == ABSENT).sum(1) == len(names) - 1)
        if not one.all():
            raise VividError(
                f"classes exclude each other, but the test image {test.ids[np.argmin(one)]} does not have exactly one "
                "present class and all others absent"
            )
    patients = Patients(test.patients, n_resamples=n_resamples, seed=seed)
    n = dict(zip(names, (n_present + n_absent).tolist(), strict=True)) | {MACRO: len(test.ids), ALL: len(test.ids)}
    resampled: dict[str, Runs] = {}
    rows: list[Row] = []
    for name, one in scored.items():
        thresholds = [best_f1_thresholds(run, validation_states) for run in one.validation]
        resampled[name] = runs = resample(one.test, test.states, patients, METRICS, thresholds, exclusive=exclusive)
        rows += _rows(name, names, runs, kept, seeds, n)
        rows += [
            Row("threshold", field, name, s, _number(at[f]), n=len(validation_states))
            for f, field in enumerate(names)
            for s, at in zip(seeds, thresholds, strict=True)
        ]
    results = Results(
        task=task,
        kind="classes" if exclusive else "findings",
        fields=names,
        seeds=list(seeds),
        test={
            "n_images": len(test.states),
            "n_patients": patients.n,
            "n_present": _by(names, n_present),
            "n_absent": _by(names, n_absent),
            "n_uncertain": _by(names, (test.states == UNCERTAIN).sum(0)),
            "n_unanswerable": _by(names, (test.states == NULL).sum(0)),
            "images_sha256": images_digest(test.ids),
        },
        macro_fields=[names[column] for column in kept],
        excluded=excluded,
        encoders={
            name: {"encoder": one.encoder, "probes": one.probes, "untrained_fields": [names[c] for c in one.untrained]}
            for name, one in scored.items()
        },
        rows=rows + difference_rows(resampled, kept, n[ALL]),
        confusion={name: _confusion(one.test, test.states) for name, one in scored.items()} if exclusive else {},
        warnings=[],
        skipped=list(skipped),
        intervals={
            "level": LEVEL,
            "method": METHOD,
            "resamples": n_resamples,
            "over": "patients",
            "seed": seed,
            "min_present": min_present,
            "min_absent": min_absent,
        },
    )
    results.warnings.extend(warnings_of(results))
    return results


def resample(
    scores: NDArray,
    states: NDArray,
    patients: Patients,
    metrics: Sequence[str],
    thresholds: Sequence[NDArray] | None = None,
    *,
    exclusive: bool = False,
) -> Runs:
    """Metrics of probabilities (S, N, F) on every resample of the patients, by seed; of classes their accuracy too.

    Args:
        thresholds: (F,) of each seed, needed for "f1".
    """
    cases, answered = patients.cases(states), patients.answered(states)
    runs: Runs = {metric: [] for metric in metrics}
    for s, test in enumerate(tqdm(scores, "resampling patients", unit="seed", delay=2, leave=False)):
        columns = [(test[:, f], states[:, f], patients.ids) for f in range(states.shape[1])]
        ranked = [RankedField(*column) for column in columns]
        for metric in metrics:
            by_field: list[Statistic]
            if metric == "auroc":
                by_field = [one.auroc for one in ranked]
            elif metric == "ap":
                by_field = [one.average_precision for one in ranked]
            elif metric == "f1":
                assert thresholds is not None
                by_field = [statistics.f1(*one, at) for one, at in zip(columns, thresholds[s], strict=True)]
            else:
                by_field = [getattr(statistics, metric)(*column) for column in columns]
            runs[metric].append(patients.resample(by_field, answered if metric in ("brier", "ece") else cases))
    if exclusive:
        truth = states.argmax(1)
        for metric in CLASS_METRICS:
            of = [getattr(statistics, metric)(test.argmax(1), truth, patients.ids) for test in scores]
            runs[metric] = [patients.resample([statistic], [patients.n]) for statistic in of]
    return runs


def _rows(
    name: str, fields: Sequence[str], runs: Runs, kept: Sequence[int], seeds: Sequence[int], n: Mapping[str, int]
) -> list[Row]:
    """All rows of an encoder: field by field, macro averages, accuracies."""
    of_fields = {metric: run for metric, run in runs.items() if metric not in CLASS_METRICS}
    by_metric = {metric: _estimates(metric, name, fields, run, seeds, n) for metric, run in of_fields.items()}
    rows = [row for f in range(len(fields)) for by_field in by_metric.values() for row in by_field[f]]
    return (
        rows
        + macro_rows(name, of_fields, kept, n[MACRO], seeds)
        + [
            row
            for metric in CLASS_METRICS
            if metric in runs
            for row in _estimates(metric, name, [ALL], runs[metric], seeds, n)[0]
        ]
    )


def macro_rows(name: str, runs: Runs, kept: Sequence[int], n: int, seeds: Sequence[int] = ()) -> list[Row]:
    """The macro average of every metric over the columns ``kept``; without ``seeds`` their mean only."""
    rows = []
    for metric, of_seeds in runs.items():
        macro = Resampled.average(of_seeds).macro(kept)
        per_seed = [run.macro(kept) for run in of_seeds]
        rows += _estimates(metric, name, [MACRO], per_seed, seeds, {MACRO: n}, mean=macro)[0]
    return rows


def difference_rows(resampled: Mapping[str, Runs], kept: Sequence[int], n: int) -> list[Row]:
    """The first encoder minus every other one, paired: of macro averages, and of the accuracy of classes."""
    first, *others = resampled
    rows = []
    for other in others:
        for metric in (*PAIRED, "accuracy"):
            if metric not in resampled[first]:
                continue
            a, b = (Resampled.average(resampled[name][metric]) for name in (first, other))
            over = ALL if metric == "accuracy" else MACRO
            difference = a - b if over == ALL else a.macro(kept) - b.macro(kept)
            ((low, high),) = difference.interval(LEVEL, bounded=False)
            value, low, high = (_number(one) for one in (difference.value[0], low, high))
            rows.append(Row(metric, over, first, None, value, low, high, n, other))
    return rows


def _estimates(
    metric: str,
    name: str,
    fields: Sequence[str],
    runs: Sequence[Resampled],
    seeds: Sequence[int],
    n: Mapping[str, int],
    *,
    mean: Resampled | None = None,
) -> list[list[Row]]:
    """For each field the mean over the seeds with its interval, then each seed."""
    mean = Resampled.average(runs) if mean is None else mean
    of_seeds = list(zip(seeds, runs, strict=True)) if seeds else []
    return [
        [
            Row(metric, field, name, None, _number(mean.value[f]), _number(low), _number(high), n[field]),
            *(Row(metric, field, name, s, _number(run.value[f]), n=n[field]) for s, run in of_seeds),
        ]
        for f, (field, (low, high)) in enumerate(zip(fields, mean.interval(LEVEL), strict=True))
    ]


def _confusion(scores: NDArray, states: NDArray) -> list[list[float]]:
    truth, labels = states.argmax(1), range(states.shape[1])
    return np.mean([confusion_matrix(truth, test.argmax(1), labels=labels) for test in scores], axis=0).tolist()


def _excluded(
    names: list[str], n_present: NDArray, n_absent: NDArray, min_present: int, min_absent: int, scored: Mapping
) -> dict[str, str]:
    excluded = {}
    for column, name in enumerate(names):
        why = [f"no head for {who}: one state only in training" for who, s in scored.items() if column in s.untrained]
        if n_present[column] < max(min_present, 1):
            why.append(f"{n_present[column]} present of at least {max(min_present, 1)}")
        if n_absent[column] < max(min_absent, 1):
            why.append(f"{n_absent[column]} absent of at least {max(min_absent, 1)}")
        if why:
            excluded[name] = "; ".join(why)
    return excluded


def _check(what: str, runs: NDArray, states: NDArray, n_seeds: int) -> None:
    if np.shape(runs) != (n_seeds, *np.shape(states)):
        raise VividError(f"{what}: probabilities {np.shape(runs)} for {n_seeds} seeds and states {np.shape(states)}")
    for run in runs:
        values, codes = check_scores(run, states)
        counted = values[(codes == PRESENT) | (codes == ABSENT)]
        if (wrong := counted[(counted < 0) | (counted > 1 + 1e-9)]).size:
            raise VividError(f"{what}: {wrong[0]} is no probability: it does not lie in [0, 1]")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _by(names: list[str], values: NDArray) -> dict[str, int]:
    return {name: int(value) for name, value in zip(names, values, strict=True)}
