"""The tables and records of a run of predictions, written from its journal."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vivid_monai.deploy.answers import Answers
from vivid_monai.deploy.journal import ANSWERED, NOT_ASSESSED, UNREADABLE, Entry
from vivid_monai.errors import VividError
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.record import Record
from vivid_monai.ums.verify import verify

FILES = {
    "predictions.csv": "a row per image: its status and, per finding, probability and state",
    "records.jsonl": "the answered images as UMS records",
    "not_assessed.csv": "images unlike what the model was trained on, with the reason",
    "unreadable.csv": "files that could not be read, with the reason",
    "overlays/": "where the ViT looked",
    "reports/": "DICOM SR of the DICOM images",
}


def record_of(answers: Answers, entry: Entry) -> Record:
    """The verified record of an image; without any finding where it was not answered.

    Raises:
        VividError: the record contradicts itself.
    """
    probabilities = entry.probabilities or [0.0] * len(answers.fields)
    data = answers.record(entry.image.path, probabilities)
    if entry.status != ANSWERED:
        data["findings"] = {}
    if wrong := verify(data):
        raise VividError(f"{entry.image.path}: the answer contradicts itself: {wrong[0].message}")
    return Record.from_dict(data)


def write_outputs(answers: Answers, entries: Sequence[Entry], folder: Path) -> None:
    """Write the tables and the records, each whole or not at all; lists with nothing to list are not there.

    Raises:
        VividError: the folder cannot be written.
    """
    records = {entry.image: record_of(answers, entry) for entry in entries if entry.status == ANSWERED}
    names = [name for field in answers.fields for name in (field, f"{field}: state")]
    more = [name for name in ("overlay", "report", "reason") if any(getattr(one, name) for one in entries)]
    rows = []
    for entry in entries:
        findings = records[entry.image].findings if entry.image in records else {}
        cells: list[Any] = []
        for field in answers.fields:
            finding = findings.get(field)
            cells += (
                ["", ""] if finding is None else ["" if finding.score is None else finding.score, finding.state or ""]
            )
        rows.append([entry.image.path, entry.status, *cells, *(getattr(entry, name) for name in more)])
    _write_table(folder / "predictions.csv", ["image", "status", *names, *more], rows)
    with whole_file(folder / "records.jsonl") as part:
        part.write_text("".join(record.to_json() + "\n" for record in records.values()), encoding="utf-8")
    for name, status in (("not_assessed.csv", NOT_ASSESSED), ("unreadable.csv", UNREADABLE)):
        listed = [[one.image.path, one.reason] for one in entries if one.status == status]
        (folder / name).unlink(missing_ok=True)
        if listed:
            _write_table(folder / name, ["image", "reason"], listed)


def _write_table(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
