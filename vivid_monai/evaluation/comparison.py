"""Heads on several encoders, tested on the same images: per-field AUROC and AP with intervals, and their difference."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.head import LinearHead
from vivid_monai.metrics.intervals import bootstrap_auroc, paired_bootstrap_auroc
from vivid_monai.metrics.masked import counts, macro, masked_auroc, masked_average_precision

Interval = tuple[float, float]


@dataclass(frozen=True)
class EncoderResult:
    """Test numbers of one encoder's head. ``None`` stands where a number is not defined.

    Attributes:
        macro_auroc, macro_interval: over the fields of ``Comparison.macro_fields``; the interval is 95 %, over
            patients.
        auroc, interval, ap: per field.
        strength: L2 weight chosen on the validation patients.
        untrained_fields: fields whose head could not be fitted (one class only among the training records).
    """

    macro_auroc: float | None
    macro_interval: tuple[float | None, float | None]
    auroc: dict[str, float | None]
    interval: dict[str, tuple[float | None, float | None]]
    ap: dict[str, float | None]
    strength: float
    untrained_fields: list[str]


@dataclass(frozen=True)
class Comparison:
    """Results by encoder name, on one test set.

    Attributes:
        n_images, n_patients: of the test set.
        n_present, n_absent: per field.
        macro_fields: fields with enough of both to enter the macro average; ``excluded``: the others.
        difference: macro AUROC of the first encoder minus that of the second, with the 95 % interval of the paired
            bootstrap over patients.
        skipped: images that could not be read, ``[path, reason]``.
    """

    n_images: int
    n_patients: int
    n_present: dict[str, int]
    n_absent: dict[str, int]
    macro_fields: list[str]
    excluded: list[str]
    encoders: dict[str, EncoderResult]
    difference: tuple[float, Interval]
    skipped: list[tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    results: Mapping[str, tuple[LinearHead, Features]],
    fields: Sequence[str],
    *,
    min_present: int = 10,
    min_absent: int = 10,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Test two heads on the same test images.

    Args:
        results: two encoders, name → (head, test features); the same images in the same order.
        fields: names of the columns.
        min_present, min_absent: what a field needs of each to enter the macro average.
        n_resamples, seed: of the bootstrap over patients.

    Raises:
        VividError: no field has enough test records.
        ValueError: the encoders were not tested on the same images.
    """
    tests = [test for _, test in results.values()]
    if len(tests) != 2 or not np.array_equal(tests[0].ids, tests[1].ids):
        raise ValueError("a comparison takes two encoders tested on the same images in the same order")
    states, patients = tests[0].states, tests[0].patients
    n_present, n_absent = counts(states)
    limits: dict[str, Any] = {"min_present": min_present, "min_absent": min_absent}
    options: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed, **limits}

    encoders, scores = {}, []
    excluded: Sequence[int] = ()
    for name, (head, test) in results.items():
        score = head.logits(test.x)
        scores.append(score)
        auroc, ap = masked_auroc(score, states), masked_average_precision(score, states)
        macro_auroc, excluded = macro(auroc, n_present, n_absent, **limits)
        if len(excluded) == len(fields):
            raise VividError(
                f"the test split is too small to test on: no field has {min_present} present and {min_absent} absent "
                f"records among its {len(states)} images; lower --min_present and --min_absent, or prepare a larger "
                "test fraction"
            )
        intervals = bootstrap_auroc(score, states, patients, **options)
        encoders[name] = EncoderResult(
            _number(macro_auroc),
            _pair(intervals.macro),
            {field: _number(v) for field, v in zip(fields, auroc, strict=True)},
            {field: _pair(v) for field, v in zip(fields, intervals.fields, strict=True)},
            {field: _number(v) for field, v in zip(fields, ap, strict=True)},
            head.strength,
            [fields[f] for f in head.untrained],
        )
    paired = paired_bootstrap_auroc(scores[0], scores[1], states, patients, **options)
    return Comparison(
        n_images=len(states),
        n_patients=len(np.unique(patients)),
        n_present={field: int(n) for field, n in zip(fields, n_present, strict=True)},
        n_absent={field: int(n) for field, n in zip(fields, n_absent, strict=True)},
        macro_fields=[field for i, field in enumerate(fields) if i not in set(excluded)],
        excluded=[fields[i] for i in excluded],
        encoders=encoders,
        difference=(paired.difference, (float(paired.interval[0]), float(paired.interval[1]))),
        skipped=[*tests[0].skipped],
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _pair(values: np.ndarray) -> tuple[float | None, float | None]:
    low, high = values
    return _number(low), _number(high)
