"""Many images in, one folder of answers out: nothing is answered twice, and nothing stops the run but its end."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.skipped import Skipped
from vivid_monai.deploy.inputs import Input, objection
from vivid_monai.deploy.journal import ANSWERED, NOT_ASSESSED, UNREADABLE, Entry, Journal
from vivid_monai.deploy.model import BundleModel
from vivid_monai.errors import VividError
from vivid_monai.files import whole_file
from vivid_monai.ums.record import Record
from vivid_monai.ums.verify import verify

FILES = {
    "predictions.csv": "a row per image: its status and, per finding, probability and state",
    "records.jsonl": "the answered images as UMS records",
    "not_assessed.csv": "images unlike what the model was trained on, with the reason",
    "unreadable.csv": "files that could not be read, with the reason",
}


@dataclass(frozen=True)
class Predictions:
    """What came of a run: entries in the order of the inputs."""

    entries: list[Entry]
    resumed: int

    def counts(self) -> Counter[str]:
        """Status → number of images."""
        return Counter(entry.status for entry in self.entries)


def predict(
    model: BundleModel, inputs: Sequence[Input], folder: Path, *, batch_size: int = 8, num_workers: int = 0
) -> Predictions:
    """Answer every image, or say why not, and write :data:`FILES` into the folder.

    Run again with the same folder, it goes on with what is not done yet. Interrupted, it writes what it has.

    Raises:
        VividError: the folder holds answers of another model, or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder, {"model": model.name, "version": model.version, "weights": model.fingerprint})
    done = [one for one in inputs if one in journal.entries]
    waiting = [one for one in inputs if one not in journal.entries]
    try:
        with tqdm(total=len(inputs), initial=len(done), desc="images", unit="image", disable=None) as bar:
            for entry in _answer(model, waiting, batch_size=batch_size, num_workers=num_workers):
                journal.add(entry)
                bar.update()
    finally:
        journal.close()
        entries = [journal.entries[one] for one in inputs if one in journal.entries]
        _write(model, entries, folder)
    return Predictions(entries, len(done))


def _answer(model: BundleModel, inputs: Sequence[Input], *, batch_size: int, num_workers: int):
    if not inputs:
        return
    rows = [{"image": one.path, "states": [], "id": str(i), "patient_id": ""} for i, one in enumerate(inputs)]
    dataset = _Checked(rows, model)
    loader: Any = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
    position = 0
    for batch in loader:
        readable = [one["image"] for one in batch if isinstance(one, dict)]
        answers = iter(model(torch.stack(readable))[0]) if readable else iter(())
        for one in batch:
            image = inputs[position]
            position += 1
            if isinstance(one, Skipped):
                yield Entry(image, UNREADABLE, one.reason)
            elif isinstance(one, str):
                yield Entry(image, NOT_ASSESSED, one)
            else:
                yield Entry(image, ANSWERED, "", [round(float(value), 6) for value in next(answers)])


class _Checked(ImageDataset):
    """Images as tensors, :class:`Skipped`, or the objection to answering them as words."""

    def __init__(self, rows: Sequence[dict[str, Any]], model: BundleModel) -> None:
        super().__init__(rows, model.preprocess.transform())
        self.views = model.views

    def __getitem__(self, index: Any) -> Any:
        path = self.data[index]["image"]
        item = super().__getitem__(index)
        if isinstance(item, Skipped):
            return item
        return objection(path, self.views) or blank(item["image"]) or item


def blank(image: torch.Tensor) -> str | None:
    """Why an image without content is not answered; None where it has some."""
    return "blank: every pixel is the same" if float(image.std()) < 1e-3 else None


def _write(model: BundleModel, entries: Sequence[Entry], folder: Path) -> None:
    answers, fields = model.answers, model.answers.fields
    records = []
    with whole_file(folder / "predictions.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["image", "status", *(name for field in fields for name in (field, f"{field}: state"))])
        for entry in entries:
            cells: list[Any] = [""] * (2 * len(fields))
            if entry.status == ANSWERED:
                record = Record.from_dict(answers.record(entry.image.path, entry.probabilities))
                if wrong := verify(record, None):
                    raise VividError(f"{entry.image.path}: the answer contradicts itself: {wrong[0].message}")
                records.append(record)
                findings = [record.findings[field] for field in fields]
                scores = ["" if one.score is None else one.score for one in findings]
                cells = [
                    cell for pair in zip(scores, (one.state or "" for one in findings), strict=True) for cell in pair
                ]
            rows.writerow([entry.image.path, entry.status, *cells])
    with whole_file(folder / "records.jsonl") as part:
        part.write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")
    for name, status in (("not_assessed.csv", NOT_ASSESSED), ("unreadable.csv", UNREADABLE)):
        listed = [(one.image.path, one.reason) for one in entries if one.status == status]
        (folder / name).unlink(missing_ok=True)
        if listed:
            with whole_file(folder / name) as part, part.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([("image", "reason"), *listed])
