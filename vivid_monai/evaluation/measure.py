"""All metrics of given scores on the test images, with intervals over patients, as one long table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.results import ALL, CLASS_METRICS, MACRO, METRICS, Results, Row, images_digest, warnings_of
from vivid_monai.logs import progress
from vivid_monai.metrics import statistics
from vivid_monai.metrics.intervals import METHOD, Patients, Resampled
from vivid_monai.metrics.masked import best_f1_thresholds, check_scores, counts
from vivid_monai.ums.states import ABSENT, NULL, PRESENT, UNCERTAIN

LEVEL = 0.95
PAIRED = ("auroc", "ap", "accuracy")
"""Metrics that are compared between encoders: macro averages, and the accuracy of classes."""

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
    names, states = list(fields), test.states
    n_present, n_absent = counts(states)
    least = {"present": (n_present, max(min_present, 1)), "absent": (n_absent, max(min_absent, 1))}
    excluded = {}
    for f, field in enumerate(names):
        why = [f"no head for {name}: one state only in training" for name, s in scored.items() if f in s.untrained]
        why += [f"{n[f]} {state} of at least {needed}" for state, (n, needed) in least.items() if n[f] < needed]
        if why:
            excluded[field] = "; ".join(why)
    if len(excluded) == len(names):
        first = next(iter(excluded.items()))
        raise VividError(
            f"{task}: no field can be measured on its {len(states)} test images ({first[0]}: {first[1]}, and so "
            "on); lower --min_present and --min_absent, or prepare a larger test fraction"
        )
    kept = [column for column, name in enumerate(names) if name not in excluded]
    for name, one in scored.items():
        _check(f"{name}, validation", one.validation, validation_states, len(seeds))
        _check(f"{name}, test", one.test, states, len(seeds))
    if exclusive:
        ok = ((states == PRESENT).sum(1) == 1) & ((states == ABSENT).sum(1) == len(names) - 1)
        if not ok.all():
            raise VividError(
                f"classes exclude each other, but the test image {test.ids[np.argmin(ok)]} does not have exactly one "
                "present class and all others absent"
            )
    patients = Patients(test.patients, n_resamples=n_resamples, seed=seed)
    of_classes = CLASS_METRICS if exclusive else ()
    resampled: dict[str, Runs] = {}
    rows: list[Row] = []
    confusion = {}
    for name, one in scored.items():
        thresholds = [best_f1_thresholds(run, validation_states) for run in one.validation]
        resampled[name] = runs = resample(one.test, states, patients, METRICS + of_classes, thresholds)
        for field, columns, metrics, n in (
            *((field, [f], METRICS, int(n_present[f] + n_absent[f])) for f, field in enumerate(names)),
            (MACRO, kept, METRICS, len(states)),
            (ALL, [0], of_classes, len(states)),
        ):
            for metric in metrics:
                rows += rows_of(metric, field, name, runs[metric], columns, n, seeds)
        rows += [
            Row("threshold", field, name, s, _number(at[f]), n=len(validation_states))
            for f, field in enumerate(names)
            for s, at in zip(seeds, thresholds, strict=True)
        ]
        if exclusive:
            truth, labels = states.argmax(1), range(len(names))
            of_seeds = [confusion_matrix(truth, run.argmax(1), labels=labels) for run in one.test]
            confusion[name] = np.mean(of_seeds, axis=0).tolist()
    codes = {"n_present": PRESENT, "n_absent": ABSENT, "n_uncertain": UNCERTAIN, "n_unanswerable": NULL}
    results = Results(
        task=task,
        kind="classes" if exclusive else "findings",
        fields=names,
        seeds=list(seeds),
        test={
            "n_images": len(states),
            "n_patients": patients.n,
            **{key: dict(zip(names, (states == c).sum(0).tolist(), strict=True)) for key, c in codes.items()},
            "images_sha256": images_digest(test.ids),
        },
        macro_fields=[names[column] for column in kept],
        excluded=excluded,
        encoders={
            name: {"encoder": one.encoder, "probes": one.probes, "untrained_fields": [names[c] for c in one.untrained]}
            for name, one in scored.items()
        },
        rows=rows + difference_rows(resampled, kept, len(states)),
        confusion=confusion,
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
        run={},
    )
    results.warnings.extend(warnings_of(results))
    return results


def resample(
    scores: NDArray, states: NDArray, patients: Patients, metrics: Sequence[str], thresholds: Sequence[NDArray] = ()
) -> Runs:
    """Metrics of probabilities (S, N, F) on every resample of the patients, by seed.

    Args:
        metrics: of :data:`.METRICS` and, where fields exclude each other, of :data:`.CLASS_METRICS`.
        thresholds: (F,) of each seed, needed for "f1".
    """
    cases, answered = patients.cases(states), patients.answered(states)
    runs: Runs = {metric: [] for metric in metrics}
    for s, test in enumerate(progress(scores, "resampling patients", unit="seed", delay=2, leave=False)):
        for metric in metrics:
            statistic = getattr(statistics, metric)
            if metric in CLASS_METRICS:
                of_classes = statistic(test.argmax(1), states.argmax(1), patients.ids)
                runs[metric].append(patients.resample([of_classes], [patients.n]))
                continue
            of_fields = [
                statistic(test[:, f], states[:, f], patients.ids, *([thresholds[s][f]] if metric == "f1" else []))
                for f in range(states.shape[1])
            ]
            runs[metric].append(patients.resample(of_fields, answered if metric in ("brier", "ece") else cases))
    return runs


def rows_of(
    metric: str,
    field: str,
    encoder: str,
    runs: Sequence[Resampled],
    columns: Sequence[int],
    n: int,
    seeds: Sequence[int] = (),
) -> list[Row]:
    """The mean over the runs with its interval, then each run by its seed; of several columns the macro average."""
    value, low, high = _estimate(Resampled.average(runs).macro(columns))
    return [
        Row(metric, field, encoder, None, value, low, high, n),
        *(Row(metric, field, encoder, s, _number(runs[i].macro(columns).value[0]), n=n) for i, s in enumerate(seeds)),
    ]


def difference_rows(resampled: Mapping[str, Runs], kept: Sequence[int], n: int) -> list[Row]:
    """The first encoder minus every other one, paired."""
    first, *others = resampled
    rows = []
    for other in others:
        for metric in (metric for metric in PAIRED if metric in resampled[first]):
            columns, field = ([0], ALL) if metric in CLASS_METRICS else (kept, MACRO)
            a, b = (Resampled.average(resampled[name][metric]).macro(columns) for name in (first, other))
            value, low, high = _estimate(a - b, bounded=False)
            rows.append(Row(metric, field, first, None, value, low, high, n, other))
    return rows


def _check(what: str, runs: NDArray, states: NDArray, n_seeds: int) -> None:
    if np.shape(runs) != (n_seeds, *np.shape(states)):
        raise VividError(f"{what}: probabilities {np.shape(runs)} for {n_seeds} seeds and states {np.shape(states)}")
    for run in runs:
        values, codes = check_scores(run, states)
        counted = values[(codes == PRESENT) | (codes == ABSENT)]
        if (wrong := counted[(counted < 0) | (counted > 1 + 1e-9)]).size:
            raise VividError(f"{what}: {wrong[0]} is no probability: it does not lie in [0, 1]")


def _estimate(of: Resampled, *, bounded: bool = True) -> list[float | None]:
    """Value, low and high of one field."""
    return [*map(_number, (of.value[0], *of.interval(LEVEL, bounded=bounded)[0]))]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
