"""Many images in, one folder of answers out: nothing is answered twice, and nothing stops the run but its end."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.deploy.inputs import Input, is_dicom, objection
from vivid_monai.deploy.journal import ANSWERED, NOT_ASSESSED, UNREADABLE, Entry, Journal
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.outputs import record_of, write_outputs
from vivid_monai.deploy.overlay import attention_maps, save_overlay
from vivid_monai.deploy.sr import Algorithm, write_sr
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import library
from vivid_monai.storage.skipped import Skipped

UNLIKE = "unlike the images that the model was trained on"


@dataclass(frozen=True)
class Predictions:
    """What came of a run: entries in the order of the inputs; how many of them were there before."""

    entries: list[Entry]
    resumed: int

    def counts(self) -> Counter[str]:
        """Status → number of images."""
        return Counter(entry.status for entry in self.entries)


def predict(
    model: BundleModel,
    inputs: Sequence[Input],
    folder: Path,
    *,
    overlays: bool = False,
    reports: bool = False,
    batch_size: int = 8,
    num_workers: int = 0,
) -> Predictions:
    """Answer every image, or say why not, and write the files of :mod:`~vivid_monai.deploy.outputs` into the folder.

    Run again with the same folder, it goes on with what is not done yet. Interrupted, it writes what it has.

    Args:
        overlays: draw where the ViT looked at each answered image.
        reports: write a DICOM SR for each DICOM image that could be read.

    Raises:
        VividError: the folder holds answers of another model or other settings, or cannot be written; reports are asked
            for and highdicom is not installed.
    """
    if reports:
        library("highdicom", '"vivid-monai[dicom-sr]"')  # now, and not once for every image
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": model.name, "version": model.version, "weights": model.fingerprint}  # one file, one runtime
    journal = Journal(folder, {**settings, "overlays": overlays, "reports": reports})
    waiting = [one for one in inputs if one not in journal.entries]
    run = _Run(model, folder, overlays, reports, batch_size, num_workers)
    try:
        with tqdm(total=len(inputs), initial=len(inputs) - len(waiting), desc="images", unit="image") as bar:
            for entry in run.answer(waiting, first=len(journal.entries)):
                journal.add(entry)
                bar.update()
    finally:
        journal.close()
        entries = [journal.entries[one] for one in inputs if one in journal.entries]
        write_outputs(model.answers, entries, folder)
    return Predictions(entries, len(inputs) - len(waiting))


@dataclass(frozen=True)
class _Run:
    model: BundleModel
    folder: Path
    overlays: bool
    reports: bool
    batch_size: int
    num_workers: int

    def answer(self, inputs: Sequence[Input], *, first: int) -> Iterator[Entry]:
        """Entries in the order of the inputs; files of theirs are numbered from `first` on."""
        if not inputs:
            return
        rows = [{"image": one.path, "id": str(i)} for i, one in enumerate(inputs)]
        loader: Any = DataLoader(
            _Checked(rows, self.model), batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=list
        )
        waiting = iter(inputs)
        number = first
        for batch in loader:
            images = {number + i: one["image"] for i, one in enumerate(batch) if isinstance(one, dict)}
            answered = self._judged(images)
            for one in batch:
                entry = Entry(next(waiting), ANSWERED)
                if isinstance(one, Skipped):
                    entry = replace(entry, status=UNREADABLE, reason=one.reason)
                elif isinstance(one, str):
                    entry = replace(entry, status=NOT_ASSESSED, reason=one)
                else:
                    entry = replace(entry, **next(answered))
                yield self._reported(entry, number)
                number += 1

    def _judged(self, images: dict[int, torch.Tensor]) -> Iterator[dict[str, Any]]:
        if not images:
            return
        batch = torch.stack(list(images.values()))
        probabilities, distances = self.model(batch)
        limit = self.model.assessment.limit
        maps = attention_maps(self.model.classifier, batch) if self.overlays else None
        for i, (number, row) in enumerate(zip(images, probabilities, strict=True)):
            if distances[i] > limit:
                yield {"status": NOT_ASSESSED, "reason": f"{UNLIKE}: distance {distances[i]:.1f}, limit {limit:.1f}"}
                continue
            overlay = ""
            if maps is not None:
                overlay = f"overlays/{number:06d}.png"
                save_overlay(batch[i], maps[i], self.model.preprocess, self.folder / overlay)
            yield {"probabilities": [round(float(value), 6) for value in row], "overlay": overlay}

    def _reported(self, entry: Entry, number: int) -> Entry:
        if not self.reports or entry.status == UNREADABLE or not is_dicom(entry.image.path):
            return entry
        report = f"reports/{number:06d}.dcm"
        algorithm = Algorithm(self.model.name, self.model.version, self.model.fingerprint)
        reason = entry.reason if entry.status == NOT_ASSESSED else None
        try:
            record = record_of(self.model.answers, entry)
            write_sr(record, Path(entry.image.path), self.folder / report, algorithm=algorithm, not_assessed=reason)
        except VividError as error:
            return replace(entry, reason=f"{entry.reason}; no report: {error}".removeprefix("; "))
        return replace(entry, report=report)


class _Checked(ImageDataset):
    """Images as tensors, :class:`Skipped`, or the objection to answering them as words."""

    def __init__(self, rows: Sequence[dict[str, Any]], model: BundleModel) -> None:
        super().__init__(rows, model.preprocess)
        self.views = model.views

    def __getitem__(self, index: Any) -> Any:
        path = self.data[index]["image"]
        item = super().__getitem__(index)
        if isinstance(item, Skipped):
            return item
        return objection(path, self.views) or item
