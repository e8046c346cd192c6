"""Every test image's states and probabilities in one table, so that any number can be computed again."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.states import decode, encode

STATE = "state:"


@dataclass(frozen=True)
class Predictions:
    """What :func:`read_predictions` finds.

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


def write_predictions(
    path: str | PathLike[str],
    test: Features,
    fields: Sequence[str],
    scores: Mapping[str, np.ndarray],
    *,
    seeds: Sequence[int],
) -> None:
    """Write a CSV with a row per image.

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
    runs = [
        (f"{name}@{seed}:", one)
        for name, all_seeds in scores.items()
        for seed, one in zip(seeds, all_seeds, strict=True)
    ]
    columns = ["id", "patient_id", *(STATE + field for field in fields)]
    columns += [start + field for start, _ in runs for field in fields]
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for i, (key, patient) in enumerate(zip(test.ids, test.patients, strict=True)):
            states = [decode(int(code)) or "" for code in test.states[i]]
            values = [repr(float(p)) for _, one in runs for p in one[i]]
            writer.writerow([key, patient, *states, *values])


def read_predictions(path: str | PathLike[str]) -> Predictions:
    """Read a table of :func:`write_predictions`.

    Raises:
        VividError: no such file, or not such a table.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        fields = [column.removeprefix(STATE) for column in header if column.startswith(STATE)]
        rest = header[2 + len(fields) :]
        runs = [tuple(rest[i].split(":", 1)[0].rsplit("@", 1)) for i in range(0, len(rest), len(fields))]
        table = np.array(rows, dtype=object).reshape(len(rows), len(header))
        states = [[encode(cell or None) for cell in row] for row in table[:, 2 : 2 + len(fields)]]
        values = table[:, 2 + len(fields) :].astype(np.float64).reshape(len(rows), len(runs), len(fields))
        names = list(dict.fromkeys(name for name, _ in runs))
        seeds = list(dict.fromkeys(int(seed) for _, seed in runs))
        scores = {name: np.stack([values[:, i] for i, run in enumerate(runs) if run[0] == name]) for name in names}
    except (OSError, ValueError, IndexError, VividError) as error:
        raise VividError(f"{path}: no table of predictions: {error}; run the evaluation again") from error
    codes = np.array(states, dtype=np.int64).reshape(len(rows), len(fields))
    return Predictions(table[:, 0].astype(str), table[:, 1].astype(str), fields, codes, scores, seeds)
