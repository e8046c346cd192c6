"""Results of an evaluation: one long table of numbers, the test set behind it, and the predictions, on disk."""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.states import STATES, encode

FORMAT, VERSION = "vivid-evaluation", 2
METRICS = ("auroc", "ap", "f1", "brier", "ece")
"""Metrics of every field; of the first three more is better, of the last two less."""
CLASS_METRICS = ("accuracy", "balanced_accuracy")
"""Metrics of classes that exclude each other."""
MACRO, ALL = "(macro)", "(all)"
"""In place of a field: the mean over the fields in the macro average; all classes together."""
FEW_PATIENTS = 50
STATE = "state:"
CSV_COLUMNS = ("encoder", "field", "metric", "value", "low", "high", "n_present", "n_absent")


class Row(NamedTuple):
    """A number.

    Attributes:
        metric: its name; "threshold" is the F1 threshold of a seed, chosen on the validation images.
        field: a field, :data:`MACRO` or :data:`ALL`.
        encoder: its name; of a difference the encoder that ``minus`` is subtracted from.
        seed: of the probe; None: the mean over the seeds, which alone has an interval.
        value, low, high: the number and the ends of its interval; None where one is not defined.
        n: images that it was measured on.
        minus: the other encoder of a paired difference, else "".
    """

    metric: str
    field: str
    encoder: str
    seed: int | None
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    minus: str = ""

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None

    @property
    def holds_zero(self) -> bool:
        """Whether 0 lies in the interval, or there is none."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


@dataclass(frozen=True, repr=False)
class Results:
    """Everything that is reported on one test set: aggregates only, no image and no patient. Printed it is a table.

    Attributes:
        task: its name. kind: "findings", or "classes" where fields exclude each other.
        test: n_images, n_patients, n_present, n_absent, n_uncertain, n_unanswerable (by field), images_sha256.
        macro_fields: fields in the macro averages; excluded: the others, with the reason.
        encoders: name → "encoder" (``Encoder.describe``), "probes" (``Probe.description`` of each seed) and
            "untrained_fields" (one state only among the training images, so that no head could be fitted).
        rows: the long table.
        confusion: encoder → images by true (rows) and predicted class, mean over the seeds; where fields exclude each
            other.
        skipped: training, validation and test images that could not be read, (path, reason).
        intervals: level, method, resamples, over, seed, min_present, min_absent.
        run: command, versions, created, seconds, data: filled in by who runs the evaluation.
    """

    task: str
    kind: str
    fields: list[str]
    seeds: list[int]
    test: dict[str, Any]
    macro_fields: list[str]
    excluded: dict[str, str]
    encoders: dict[str, dict[str, Any]]
    rows: list[Row]
    confusion: dict[str, list[list[float]]]
    warnings: list[str]
    skipped: Sequence[Sequence[str]]
    intervals: dict[str, Any]
    run: dict[str, Any]

    def __repr__(self) -> str:
        from vivid_monai.evaluation.format import summary_table  # which knows this class

        return summary_table(self)

    @cached_property
    def _by_key(self) -> dict[tuple, Row]:
        return {(row.metric, row.field, row.encoder, row.seed): row for row in self.rows if not row.minus}

    def get(self, metric: str, field: str, encoder: str, seed: int | None = None) -> Row:
        """The row of an encoder; a KeyError where it was not measured."""
        return self._by_key[metric, field, encoder, seed]

    def per_seed(self, metric: str, field: str, encoder: str) -> list[float | None]:
        """The value of each seed."""
        return [self.get(metric, field, encoder, seed).value for seed in self.seeds]

    @property
    def differences(self) -> list[Row]:
        """Paired differences of the first encoder and every other one."""
        return [row for row in self.rows if row.minus]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; "columns" names what each of the "rows" holds."""
        return {"format": FORMAT, "version": VERSION, **asdict(self), "columns": list(Row._fields)}

    def save(self, path: str | PathLike[str]) -> None:
        """Write JSON, whole or not at all. Raises VividError where the file cannot be written."""
        with whole_file(path) as part:
            part.write_text(dumps(self.to_dict()), "utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file of :meth:`save`, or of version 1. Raises VividError where it cannot be read or is none."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise VividError(f"{path}: results cannot be read: {error}; run the evaluation again") from error
        values = values if isinstance(values, dict) else {}
        found, version = values.get("format"), values.get("version")
        if found != FORMAT or version not in (1, VERSION):
            raise VividError(
                f"{path}: these are no results of this version: format {found!r}, version {version!r}, where "
                f"{FORMAT!r}, {VERSION} is read; run the evaluation again"
            )
        try:
            parts = _of_version_1(values) if version == 1 else values
            parts = {key: one for key, one in parts.items() if key not in ("format", "version", "columns")}
            return cls(**{**parts, "rows": [Row(*row) for row in parts["rows"]]})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VividError(f"{path}: these results are not complete ({error!r}); run the evaluation again") from error


def dumps(values: Mapping[str, Any]) -> str:
    """JSON of :meth:`Results.to_dict` with a row of the table to a line."""
    head = {key: value for key, value in values.items() if key != "rows"}
    text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in values["rows"])
    return f'{text[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n'


def _of_version_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Results as they were stored before there was one table: records within records."""
    test, seeds, rows = values["test"], values["seeds"], list[Row]()

    def add(metric: str, field: str, name: str, one: Mapping[str, Any], minus: str = "") -> None:
        whole = field in (MACRO, ALL)
        n = test["n_images"] if whole else test["n_present"][field] + test["n_absent"][field]
        rows.append(Row(metric, field, name, None, one["value"], one["low"], one["high"], n, minus))
        rows.extend(Row(metric, field, name, *of, n=n) for of in zip(seeds, one["per_seed"], strict=not minus))

    for name, one in values["encoders"].items():
        for field, metrics in {**one["fields"], MACRO: one["macro"]}.items():
            for metric, estimate in metrics.items():
                add(metric, field, name, estimate)
        for metric in CLASS_METRICS if one.get("classes") else ():
            add(metric, ALL, name, one["classes"][metric])
        for field, thresholds in one["thresholds"].items():
            rows += [Row("threshold", field, name, *of) for of in zip(seeds, thresholds, strict=True)]
    for one in values["differences"]:
        add(one["metric"], ALL if one["metric"] == "accuracy" else MACRO, one["first"], one["estimate"], one["second"])
    encoders = values["encoders"].items()
    return {
        **{key: value for key, value in values.items() if key != "differences"},
        "encoders": {n: {key: one[key] for key in ("encoder", "probes", "untrained_fields")} for n, one in encoders},
        "confusion": {name: one["classes"]["confusion"] for name, one in encoders if one.get("classes")},
        "rows": rows,
    }


def csv_rows(rows: Iterable[Row], test: Mapping[str, Any]) -> Iterator[tuple]:
    """The means over the seeds and the differences, in the order of :data:`CSV_COLUMNS`; ``test`` as of Results."""
    for row in rows:
        if row.seed is None:
            name = f"{row.encoder} - {row.minus}" if row.minus else row.encoder
            counts = [test[key].get(row.field) for key in ("n_present", "n_absent")]
            yield (name, row.field, row.metric, row.value, row.low, row.high, *counts)


def write_csv(path: str | PathLike[str], columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a CSV file, whole or not at all; None is empty. Raises VividError where the file cannot be written."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def images_digest(ids: Sequence[str] | NDArray) -> str:
    """SHA-256 of the ids of the test images in order, as ``Results.test["images_sha256"]`` has it."""
    return hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()


def warnings_of(results: Results) -> list[str]:
    """One sentence for each thing that is wrong or doubtful."""
    warnings, shared = [], defaultdict[str, list[str]](list)
    for name, encoder in results.encoders.items():
        aurocs = {field: results.get("auroc", field, name) for field in results.fields}
        warnings += [
            f"{name}: AUROC of {field} is under chance, {row.value:.3f} ({row.low:.3f} to {row.high:.3f}): look for "
            "swapped labels, or for training images unlike the test images"
            for field, row in aurocs.items()
            if row.high is not None and row.high < 0.5
        ]
        without = {
            "no interval for the AUROC of {}: perfectly separated, or one state in fewer than two patients; resampling "
            "cannot tell what more patients would show": [
                f for f in results.macro_fields if not aurocs[f].has_interval
            ],
            "no F1 for {}: the validation images have one state only, which gives no threshold": [
                f for f in results.fields if None in results.per_seed("threshold", f, name)
            ],
            "no head for {}: the training images have one state only": encoder["untrained_fields"],
        }
        for words, fields in without.items():
            if fields:
                shared[words.format(", ".join(fields))].append(name)
        for seed, probe in zip(results.seeds, encoder["probes"], strict=False):
            for warning in probe.get("warnings", ()):
                of = ", ".join(results.fields[column] for column in warning["columns"])
                warnings.append(f"{name}, seed {seed}: {of} {warning['message']}")
    for words, names in shared.items():
        everyone = len(names) == len(results.encoders) > 1
        warnings.append(f"{'every encoder' if everyone else ', '.join(names)}: {words}")
    if (n_patients := results.test["n_patients"]) < FEW_PATIENTS:
        warnings.append(f"only {n_patients} test patients: every number here may change with the next ones")
    if results.excluded:
        n, asked = len(results.macro_fields), len(results.fields)
        warnings.append(f"macro averages over {n} of the {asked} fields asked for")
    if results.skipped:
        warnings.append(f"{len(results.skipped)} images could not be read and are left out, listed in skipped.csv")
    return warnings


@dataclass(frozen=True)
class Predictions:
    """Every test image's states and probabilities, so that any number can be computed again.

    Attributes:
        ids, patients: str (N,). fields: names of the columns. seeds: of the probes.
        states: int64 (N, F). scores: encoder name → probabilities, float64 (S, N, F).
    """

    ids: np.ndarray
    patients: np.ndarray
    fields: list[str]
    states: np.ndarray
    scores: dict[str, np.ndarray]
    seeds: list[int]

    def select(self, fields: Sequence[str]) -> Self:
        """Some of the fields, in the order given."""
        columns = [self.fields.index(field) for field in fields]
        scores = {name: one[:, :, columns] for name, one in self.scores.items()}
        return replace(self, fields=list(fields), states=self.states[:, columns], scores=scores)


def write_predictions(
    path: str | PathLike[str],
    test: Features,
    fields: Sequence[str],
    scores: Mapping[str, NDArray],
    *,
    seeds: Sequence[int],
) -> None:
    """Write predictions.csv with a row per image.

    Columns: ``id``; ``patient_id``; ``state:<field>``, empty where it cannot be answered; and for each encoder and
    seed ``<encoder>@<seed>:<field>``, the probability that the field is present, in as many digits as it has: rounding
    could make ties of two images that differ.

    Args:
        test: ids, patients and states of the images.
        fields: names of the columns of the states.
        scores: encoder name → probabilities (S, N, F) of the same images; a name holds neither "@" nor ":".

    Raises:
        VividError: the file cannot be written.
    """
    columns = ["id", "patient_id", *(STATE + field for field in fields)]
    columns += [f"{name}@{seed}:{field}" for name in scores for seed in seeds for field in fields]
    words = np.array([*STATES, ""])[test.states]  # −1, which cannot be answered, is the last
    values = np.concatenate([run for runs in scores.values() for run in runs], axis=1, dtype=np.float64).tolist()
    images = zip(test.ids, test.patients, words, values, strict=True)
    write_csv(path, columns, ([key, patient, *states, *run] for key, patient, states, run in images))


def read_predictions(path: str | PathLike[str]) -> Predictions:
    """Read a table of :func:`write_predictions`. Raises VividError where it cannot be read or is none."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        fields = [column.removeprefix(STATE) for column in header if column.startswith(STATE)]
        first = 2 + len(fields)
        runs = [column.split(":", 1)[0].rsplit("@", 1) for column in header[first :: len(fields)]]
        names, seeds = list(dict.fromkeys(name for name, _ in runs)), list(dict.fromkeys(int(seed) for _, seed in runs))
        table = np.array(rows, dtype=object).reshape(len(rows), len(header))
        states = [[encode(cell or None) for cell in row] for row in table[:, 2:first]]
        values = table[:, first:].astype(np.float64).reshape(len(rows), len(names), len(seeds), len(fields))
    except (OSError, ValueError, IndexError, VividError) as error:
        raise VividError(f"{path}: no table of predictions: {error}; run the evaluation again") from error
    codes = np.array(states, dtype=np.int64).reshape(len(rows), len(fields))
    scores = dict(zip(names, values.transpose(1, 2, 0, 3).copy(), strict=True))
    return Predictions(table[:, 0].astype(str), table[:, 1].astype(str), fields, codes, scores, seeds)
