"""What an evaluation found, as it is stored: aggregates only, no image and no patient."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import field as default
from os import PathLike
from pathlib import Path
from typing import Any, Self

from vivid_monai.errors import VividError
from vivid_monai.storage.files import whole_file

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
    run: dict[str, Any] = default(default_factory=dict)

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


FEW_PATIENTS = 50


def warnings_of(results: Results) -> list[str]:
    """One sentence for each thing that is wrong or doubtful: an AUROC surely under chance or without an interval, heads
    that could not be fitted, fields without a threshold, few patients, fields left out of the macro averages, images
    that could not be read."""
    told, shared = [], defaultdict[str, list[str]](list)
    for name, encoder in results.encoders.items():
        for field, metrics in encoder.fields.items():
            auroc = metrics["auroc"]
            if auroc.value is not None and auroc.high is not None and auroc.high < 0.5:
                told.append(
                    f"{name}: AUROC of {field} is under chance, {auroc.value:.3f} ({auroc.low:.3f} to "
                    f"{auroc.high:.3f}): look for swapped labels, or for training images unlike the test images"
                )
        if sure := [field for field in results.macro_fields if encoder.fields[field]["auroc"].low is None]:
            shared[
                f"no interval for the AUROC of {', '.join(sure)}: perfectly separated, or one state in fewer "
                "than two patients; resampling cannot tell what more patients would show"
            ].append(name)
        if no_threshold := [field for field, thresholds in encoder.thresholds.items() if None in thresholds]:
            shared[
                f"no F1 for {', '.join(no_threshold)}: the validation images have one state only, which gives no "
                "threshold"
            ].append(name)
        if encoder.untrained_fields:
            shared[
                f"no head for {', '.join(encoder.untrained_fields)}: the training images have one state only"
            ].append(name)
        for seed, probe in zip(results.seeds, encoder.probes, strict=False):
            for warning in probe.get("warnings", ()):
                fields = ", ".join(results.fields[column] for column in warning["columns"])
                told.append(f"{name}, seed {seed}: {fields} {warning['message']}")
    for words, names in shared.items():
        everyone = len(names) == len(results.encoders) > 1
        told.append(f"{'every encoder' if everyone else ', '.join(names)}: {words}")
    if results.test["n_patients"] < FEW_PATIENTS:
        told.append(f"only {results.test['n_patients']} test patients: every number here may change with the next ones")
    if results.excluded:
        told.append(f"macro averages over {len(results.macro_fields)} of the {len(results.fields)} fields asked for")
    if results.skipped:
        told.append(f"{len(results.skipped)} images could not be read and are left out, listed in skipped.csv")
    return told


MACRO = {"auroc": "macro AUROC", "ap": "macro AP", "f1": "macro F1", "brier": "macro Brier", "ece": "macro ECE"}


def summary_table(results: Results) -> str:
    """A row per field with its AUROC and 95 % interval for each encoder, the macro averages, the paired differences,
    what was left out and what to be wary of."""
    names = list(results.encoders)
    first = max(len(field) for field in [*results.fields, "balanced accuracy"]) + 3
    width = max(20, *(len(name) for name in names))
    title = "test AUROC (95 % CI)"
    head = f"{title:{first}s} {'n+':>6s} {'n-':>6s}  " + "  ".join(f"{name:>{width}s}" for name in names)
    rule = "-" * len(head)

    def row(label: str, cells: list[Estimate | None], counts: tuple[str, str] = ("", "")) -> str:
        numbers = "  ".join(f"{_format(cell):>{width}s}" for cell in cells)
        return f"{label:{first}s} {counts[0]:>6s} {counts[1]:>6s}  {numbers}".rstrip()

    lines = [head, rule]
    for field in results.fields:
        counts = str(results.test["n_present"][field]), str(results.test["n_absent"][field])
        cells: list[Estimate | None] = [results.encoders[name].fields[field]["auroc"] for name in names]
        lines.append(row(field + (" *" if field in results.excluded else ""), cells, counts))
    lines.append(rule)
    lines += [row(words, [results.encoders[name].macro[key] for name in names]) for key, words in MACRO.items()]
    if results.kind == "classes":
        for key in ("accuracy", "balanced_accuracy"):
            cells = [getattr(results.encoders[name].classes, key) for name in names]
            lines.append(row(key.replace("_", " "), cells))
    if len(results.seeds) > 1:
        lines.append("macro AUROC of each seed: " + "; ".join(_seeds(results, name) for name in names))
    lines += [
        f"{one.first} - {one.second}, {MACRO.get(one.metric, one.metric)}: {_signed(one.estimate)}"
        for one in results.differences
        if one.estimate.value is not None
    ]
    lines.append(
        f"{results.test['n_images']} test images of {results.test['n_patients']} patients; intervals and differences: "
        f"{results.intervals['resamples']} resamples of the patients"
    )
    if results.excluded:
        told = "; ".join(f"{field} ({reason})" for field, reason in results.excluded.items())
        lines.append(f"* not in the macro averages: {told}")
    lines += [f"WARNING: {warning}" for warning in results.warnings]
    return "\n".join(lines)


def _seeds(results: Results, name: str) -> str:
    values = results.encoders[name].macro["auroc"].per_seed
    return f"{name} {', '.join('-' if value is None else f'{value:.3f}' for value in values)}"


def _format(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"


def _signed(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.3f}"
    shown = "the interval holds 0" if estimate.holds_zero else "shown"
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f}), {shown}"
