"""What an evaluation found, as it is stored: aggregates only, no image and no patient."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Self

from vivid_monai.errors import VividError
from vivid_monai.files import whole_file

FORMAT = "vivid-evaluation"
VERSION = 1
METRICS = ("auroc", "ap", "f1", "brier", "ece")
"""Metrics of every field; of the first three more is better, of the last two less."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; None where one is not defined. ``per_seed``: the seeds behind a mean."""

    value: float | None
    low: float | None = None
    high: float | None = None
    per_seed: tuple[float | None, ...] = ()

    @property
    def holds_zero(self) -> bool:
        """Whether 0 lies in the interval, or there is none."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


@dataclass(frozen=True)
class ClassResult:
    """Where fields exclude each other. ``confusion``: images by true (rows) and predicted class, mean of the seeds."""

    accuracy: Estimate
    balanced_accuracy: Estimate
    confusion: list[list[float]]


@dataclass(frozen=True)
class EncoderResult:
    """Numbers of one encoder.

    Attributes:
        encoder: what it is (``Encoder.describe``). probes: how each seed's probe was fitted (``Probe.describe``).
        untrained_fields: fields whose head could not be fitted: one state only among the training images.
        thresholds: field → threshold of each seed, chosen on validation.
        macro: metric → mean over ``Results.macro_fields``. fields: field → metric → number.
        classes: where fields exclude each other.
    """

    encoder: dict[str, Any]
    probes: list[dict[str, Any]]
    untrained_fields: list[str]
    thresholds: dict[str, list[float | None]]
    macro: dict[str, Estimate]
    fields: dict[str, dict[str, Estimate]]
    classes: ClassResult | None = None


@dataclass(frozen=True)
class Difference:
    """``metric`` of the first encoder minus that of the second on the same images, with its paired interval."""

    first: str
    second: str
    metric: str
    estimate: Estimate


@dataclass(frozen=True)
class Results:
    """Results by encoder name, on one test set.

    Attributes:
        task: its name. kind: "findings", or "classes" where fields exclude each other.
        test: n_images, n_patients, n_present, n_absent, n_uncertain, n_unanswerable (by field), images_sha256.
        macro_fields: fields in the macro averages; excluded: the others, with the reason.
        skipped: training, validation and test images that could not be read, (path, reason).
        intervals: level, method, resamples, over, seed.
        run: command, versions, created, seconds, data: filled in by who runs the evaluation.
    """

    task: str
    kind: str
    fields: list[str]
    seeds: list[int]
    test: dict[str, Any]
    macro_fields: list[str]
    excluded: dict[str, str]
    encoders: dict[str, EncoderResult]
    differences: list[Difference]
    warnings: list[str]
    skipped: list[tuple[str, str]]
    intervals: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave.

        Raises:
            VividError: it is not of this format and version, or a part is missing.
        """
        if values.get("format") != FORMAT or values.get("version") != VERSION:
            raise VividError(
                f"these are no results of this version: format {values.get('format')!r}, version "
                f"{values.get('version')!r}, where {FORMAT!r}, {VERSION} is read; run the evaluation again"
            )
        parts = {name: value for name, value in values.items() if name not in ("format", "version")}
        try:
            parts["encoders"] = {name: _encoder(one) for name, one in parts["encoders"].items()}
            parts["differences"] = [
                Difference(**{**one, "estimate": _estimate(one["estimate"])}) for one in parts["differences"]
            ]
            parts["skipped"] = [tuple(one) for one in parts["skipped"]]
            return cls(**parts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VividError(f"these results are not complete ({error!r}); run the evaluation again") from error

    def save(self, path: str | PathLike[str]) -> None:
        """Write JSON, whole or not at all. Raises VividError where the file cannot be written."""
        with whole_file(path) as part:
            part.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file of :meth:`save`. Raises VividError that names the file."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise VividError(f"{path}: results cannot be read: {error}; run the evaluation again") from error
        try:
            return cls.from_dict(values if isinstance(values, dict) else {})
        except VividError as error:
            raise VividError(f"{path}: {error}") from error


def _estimate(values: Mapping[str, Any]) -> Estimate:
    return Estimate(**{**values, "per_seed": tuple(values["per_seed"])})


def _encoder(values: Mapping[str, Any]) -> EncoderResult:
    parts = dict(values)
    parts["macro"] = {metric: _estimate(one) for metric, one in parts["macro"].items()}
    parts["fields"] = {
        name: {metric: _estimate(one) for metric, one in metrics.items()} for name, metrics in parts["fields"].items()
    }
    if parts.get("classes"):
        both = {key: _estimate(parts["classes"][key]) for key in ("accuracy", "balanced_accuracy")}
        parts["classes"] = ClassResult(**both, confusion=parts["classes"]["confusion"])
    return EncoderResult(**parts)
