"""The curves of a run: a table of what it measured, one of how fast it was, and what is drawn of them."""

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vivid_monai.errors import VividError, first_line
from vivid_monai.storage.files import whole_file

CURVES, TIMES, PICTURE = "curves.csv", "times.csv", "progress.png"
PANELS = {
    "training loss (nats)": r"train/(?!.*(penalty|grad_norm)$)",
    "validation macro AUROC": r"val/.*macro_auroc(/|$)",
    "validation state NLL (nats)": r"val/.*nll_(own|shuffled|blank)$",
    "SPD overlap (mean |cos|)": r"train/.*penalty$",
    "learning rate": r"lr/",
    "images per second": r"images_per_s$",
}
"""Title of each panel → the columns that it shows."""

Row = Mapping[str, float]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a table with a column for every name in any of the rows, whole or not at all."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a table of :func:`write_rows`, without what a row lacks.

    Raises:
        VividError: it cannot be read, a cell is no number, or a row has no step.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise VividError(f"{path}: cannot be read as the curves of a run: {first_line(error)}") from error
    if not all("step" in row for row in rows):
        raise VividError(
            f"{path}: a row has no step, so these are no curves of a run; resume the run, or remove the file"
        )
    return rows


def panels(rows: Iterable[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Of each panel with anything to show: column → its points (step, value), over rows of both tables."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    found = {}
    for title, pattern in PANELS.items():
        lines = {}
        for name in filter(re.compile(pattern).match, names):
            points = [(row["step"], row[name]) for row in rows if not math.isnan(row.get(name, math.nan))]
            if points:
                lines[name] = points
        if lines:
            found[title] = lines
    return found
