"""Probabilities and states of the test images → every number that is reported, with its interval over patients."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.results import (
    METRICS,
    ClassResult,
    Difference,
    EncoderResult,
    Estimate,
    Results,
    warnings_of,
)
from vivid_monai.metrics import statistics as sums
from vivid_monai.metrics.intervals import METHOD, Patients, Resampled
from vivid_monai.metrics.masked import best_f1_thresholds, check_scores, counts
from vivid_monai.metrics.statistics import RankedField
from vivid_monai.ums.states import ABSENT, NULL, PRESENT, UNCERTAIN

LEVEL = 0.95


@dataclass(frozen=True)
class Scored:
    """What the probes of one encoder said.

    Attributes:
        validation: probabilities (S, M, F) of the validation images, for thresholds.
        test: probabilities (S, N, F) of the test images.
        encoder: ``Encoder.describe()``. probes: ``Probe.describe()`` of each seed.
        untrained: columns without a fitted head.
    """

    validation: np.ndarray
    test: np.ndarray
    encoder: dict[str, Any]
    probes: list[dict[str, Any]]
    untrained: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Measured:
    """One encoder's metrics, resampled: the mean over the seeds, and each seed."""

    fields: dict[str, Resampled]
    seeds: dict[str, list[Resampled]]
    thresholds: list[NDArray[np.float64]]
    classes: dict[str, Resampled] = field(default_factory=dict)
    class_seeds: dict[str, list[Resampled]] = field(default_factory=dict)
    confusion: NDArray[np.float64] | None = None


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
        scored: encoder name → what its probes said.
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
    measured = {
        name: _measure(one, validation_states, test.states, patients, exclusive) for name, one in scored.items()
    }
    encoders = {name: _encoder_result(scored[name], measured[name], names, kept) for name in scored}
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
            "images_sha256": hashlib.sha256("\n".join(map(str, test.ids)).encode()).hexdigest(),
        },
        macro_fields=[names[column] for column in kept],
        excluded=excluded,
        encoders=encoders,
        differences=_differences(measured, kept),
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


def _excluded(
    names: list[str], n_present: NDArray, n_absent: NDArray, min_present: int, min_absent: int, scored: Mapping
) -> dict[str, str]:
    reasons = {}
    for column, name in enumerate(names):
        told = [f"no head for {who}: one state only in training" for who, s in scored.items() if column in s.untrained]
        if n_present[column] < max(min_present, 1):
            told.append(f"{n_present[column]} present of at least {max(min_present, 1)}")
        if n_absent[column] < max(min_absent, 1):
            told.append(f"{n_absent[column]} absent of at least {max(min_absent, 1)}")
        if told:
            reasons[name] = "; ".join(told)
    return reasons


def _check(what: str, runs: NDArray, states: NDArray, n_seeds: int) -> None:
    if np.shape(runs) != (n_seeds, *np.shape(states)):
        raise VividError(f"{what}: probabilities {np.shape(runs)} for {n_seeds} seeds and states {np.shape(states)}")
    for run in runs:
        values, codes = check_scores(run, states)
        counted = values[(codes == PRESENT) | (codes == ABSENT)]
        if (wrong := counted[(counted < 0) | (counted > 1 + 1e-9)]).size:
            raise VividError(f"{what}: {wrong[0]} is no probability: it does not lie in [0, 1]")


def _measure(
    one: Scored, validation_states: NDArray, states: NDArray, patients: Patients, exclusive: bool
) -> _Measured:
    cases = patients.cases(states)
    answered = patients.answered(states)
    seeds: dict[str, list[Resampled]] = {metric: [] for metric in METRICS}
    thresholds = []
    for validation, test in zip(one.validation, one.test, strict=True):
        threshold = best_f1_thresholds(validation, validation_states)
        thresholds.append(threshold)
        columns = [(test[:, f], states[:, f], patients.ids) for f in range(states.shape[1])]
        ranked = [RankedField(*column) for column in columns]
        seeds["auroc"].append(patients.resample([r.auroc for r in ranked], cases))
        seeds["ap"].append(patients.resample([r.average_precision for r in ranked], cases))
        f1 = [sums.f1(*column, at) for column, at in zip(columns, threshold, strict=True)]
        seeds["f1"].append(patients.resample(f1, cases))
        seeds["brier"].append(patients.resample([sums.brier(*column) for column in columns], answered))
        seeds["ece"].append(patients.resample([sums.ece(*column) for column in columns], answered))
    averaged = {metric: Resampled.average(runs) for metric, runs in seeds.items()}
    if not exclusive:
        return _Measured(averaged, seeds, thresholds)

    truth = (states == PRESENT).argmax(1)
    by_class: dict[str, list[Resampled]] = {"accuracy": [], "balanced_accuracy": []}
    confusion = []
    for test in one.test:
        predicted = test.argmax(1)
        for metric, runs in by_class.items():
            runs.append(patients.resample([getattr(sums, metric)(predicted, truth, patients.ids)], [patients.n]))
        confusion.append(confusion_matrix(truth, predicted, labels=range(states.shape[1])))
    classes = {metric: Resampled.average(runs) for metric, runs in by_class.items()}
    return _Measured(averaged, seeds, thresholds, classes, by_class, np.mean(confusion, axis=0))


def _encoder_result(one: Scored, measured: _Measured, names: list[str], kept: list[int]) -> EncoderResult:
    columns = range(len(names))
    by_metric = {m: _estimates(measured.fields[m], measured.seeds[m]) for m in METRICS}
    macro = {
        metric: _estimates(measured.fields[metric].macro(kept), [run.macro(kept) for run in measured.seeds[metric]])[0]
        for metric in METRICS
    }
    classes = None
    if measured.confusion is not None:
        both = {m: _estimates(measured.classes[m], runs)[0] for m, runs in measured.class_seeds.items()}
        classes = ClassResult(**both, confusion=measured.confusion.tolist())
    return EncoderResult(
        encoder=one.encoder,
        probes=one.probes,
        untrained_fields=[names[column] for column in one.untrained],
        thresholds={names[f]: [_number(threshold[f]) for threshold in measured.thresholds] for f in columns},
        macro=macro,
        fields={names[f]: {metric: by_metric[metric][f] for metric in METRICS} for f in columns},
        classes=classes,
    )


def _differences(measured: Mapping[str, _Measured], kept: list[int]) -> list[Difference]:
    """The first encoder against every other one."""
    first, *others = measured
    differences = []
    for other in others:
        for metric in ("auroc", "ap"):
            a, b = (measured[name].fields[metric].macro(kept) for name in (first, other))
            differences.append(Difference(first, other, metric, _estimates(a - b, [], bounded=False)[0]))
        if measured[first].classes:
            a, b = (measured[name].classes["accuracy"] for name in (first, other))
            differences.append(Difference(first, other, "accuracy", _estimates(a - b, [], bounded=False)[0]))
    return differences


def _estimates(mean: Resampled, seeds: Sequence[Resampled], *, bounded: bool = True) -> list[Estimate]:
    intervals = mean.interval(LEVEL, bounded=bounded)
    return [
        Estimate(_number(value), _number(low), _number(high), tuple(_number(run.value[f]) for run in seeds))
        for f, (value, (low, high)) in enumerate(zip(mean.value, intervals, strict=True))
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _by(names: list[str], values: NDArray) -> dict[str, int]:
    return {name: int(value) for name, value in zip(names, values, strict=True)}
