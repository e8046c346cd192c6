"""The numbers of results as one long table, for spreadsheets and other programs."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike

from vivid_monai.evaluation.results import Difference, Estimate, Results
from vivid_monai.storage.files import whole_file

COLUMNS = ("encoder", "field", "metric", "value", "low", "high", "n_present", "n_absent")
MACRO, ALL = "(macro)", "(all)"
"""In place of a field: the mean over the fields in the macro average; all classes together."""


def metric_rows(results: Results) -> Iterator[tuple]:
    """A row for every number, in the order of COLUMNS; a difference is of the encoder "first - second"."""
    for name, encoder in results.encoders.items():
        for field, metrics in encoder.fields.items():
            counts = results.test["n_present"][field], results.test["n_absent"][field]
            for metric, estimate in metrics.items():
                yield _row(name, field, metric, estimate, counts)
        for metric, estimate in encoder.macro.items():
            yield _row(name, MACRO, metric, estimate)
        if encoder.classes is not None:
            for metric in ("accuracy", "balanced_accuracy"):
                yield _row(name, ALL, metric, getattr(encoder.classes, metric))
    yield from difference_rows(results.differences)


def difference_rows(differences: Iterable[Difference]) -> Iterator[tuple]:
    for one in differences:
        over = ALL if one.metric == "accuracy" else MACRO
        yield _row(f"{one.first} - {one.second}", over, one.metric, one.estimate)


def write_table(path: str | PathLike[str], columns: Sequence[str], rows: Iterable[tuple]) -> None:
    """Write a CSV file, whole or not at all; what is not defined is empty.

    Raises:
        VividError: the file cannot be written.
    """
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _row(
    name: str, field: str, metric: str, e: Estimate, counts: tuple[int | None, int | None] = (None, None)
) -> tuple:
    return (name, field, metric, e.value, e.low, e.high, *counts)
