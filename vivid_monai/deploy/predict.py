"""``vivid predict``: findings of many image files, resumable; what is not assessed or cannot be read is listed."""

import json
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from pydicom.misc import is_dicom
from torch import Tensor
from torch.utils.data import DataLoader

from vivid_monai.deploy.eligibility import RefuseByTagsd, check_accept
from vivid_monai.deploy.inputs import JOURNAL, UNSEEN, Input, InputDataset
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.overlays import Heat, save_overlay
from vivid_monai.deploy.postprocessing import (
    ANSWERED,
    NOT_ASSESSED,
    TABLES,
    UNLIKE,
    UNREADABLE,
    DecisionRules,
    PredictionsWriter,
)
from vivid_monai.deploy.sr import LONG, Algorithm, write_sr
from vivid_monai.errors import VividError
from vivid_monai.evaluation.heatmaps import heat_maps, most_probable
from vivid_monai.images.read import ImageError
from vivid_monai.logs import progress
from vivid_monai.networks.library import import_library
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.record import Record
from vivid_monai.ums.verify import verify

FILES = {
    "predictions.csv": "a row per image: its status and, per finding, probability and state",
    "records.jsonl": "the answered images as UMS records",
    "not_assessed.csv": "images unlike what the model was trained on, with the reason",
    "unreadable.csv": "files that could not be read, with the reason",
    "overlays/": "which parts of an image speak for its most probable findings",
    "reports/": "DICOM SR of the DICOM images",
}


@dataclass(frozen=True)
class Entry:
    """What became of one image.

    Attributes:
        status: "answered", "not assessed" or "unreadable".
        reason: why it is not answered, or has no report although one was asked for.
        probabilities: of the fields in order, where answered.
        accepted: tags that forbade an answer and were overridden.
        overlay, report: files in the folder of the run, "" where there is none.
    """

    image: Input
    status: str
    reason: str = ""
    probabilities: list[float] = field(default_factory=list)
    overlay: str = ""
    report: str = ""
    accepted: str = ""


@dataclass(frozen=True)
class Predictions:
    """The result of a run.

    Attributes:
        entries: in the order of the inputs.
        resumed: how many of them an earlier run had made.
        rules: from their probabilities to records.
    """

    entries: list[Entry]
    resumed: int
    rules: DecisionRules

    @property
    def unseen(self) -> list[str]:
        """Folders whose files are not known."""
        return [one.image.path for one in self.entries if UNSEEN in one.image.problem]

    def records(self) -> Iterator[Record]:
        """The answered images in order, as in ``records.jsonl``."""
        return (Record.from_dict(_record(self.rules, one)) for one in self.entries if one.status == ANSWERED)

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
    accept: Sequence[str] = (),
    batch_size: int = 8,
    num_workers: int = 0,
) -> Predictions:
    """Predict the findings of every image, or say why not, and write :data:`FILES` into the folder.

    Run again with the same folder, it predicts what is missing. Interrupted, even killed, it leaves what it has.

    Args:
        overlays: draw what speaks for the most probable findings of each answered image, which takes
            :data:`~vivid_monai.evaluation.heatmaps.GRID` ** 2 more answers.
        reports: write a DICOM SR for each DICOM image that could be read.
        accept: tags that forbid no answer, as of :class:`~vivid_monai.deploy.eligibility.RefuseByTagsd`.

    Raises:
        VividError: the folder holds predictions of another model or other settings, or cannot be written; reports
            without highdicom are asked for; an unknown tag, a batch without images; a record that contradicts itself.
    """
    if batch_size < 1 or num_workers < 0:
        name, least, given = ("batch-size", 1, batch_size) if batch_size < 1 else ("workers", 0, num_workers)
        raise VividError(f"--{name} must be {least} or more, not {given}")
    if reports:
        import_library("highdicom", '"vivid-monai[dicom-sr]"')  # now, and not once for every image
    overridden, transform = check_accept(accept), reading(model, accept)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": model.name, "version": model.version, "weights": model.fingerprint}  # one file, one runtime
    asked = {"accept": list(overridden)} if overridden else {}
    drawn = "evidence" if overlays else False  # True: attention, as of earlier versions
    journal = Journal(folder, {**settings, "overlays": drawn, "reports": reports, **asked})
    waiting = [one for one in inputs if one not in journal.entries]
    may_be = {"overlay": overlays, "report": reports, "accepted": accept, "reason": True}
    more = [name for name, is_asked in may_be.items() if is_asked]
    tables: PredictionsWriter | None = None
    try:
        write_predictions(model.rules, _done(journal, inputs), folder, more=more)
        tables = PredictionsWriter(model.rules.fields, _places(folder), more=more)
        with progress(total=len(inputs), initial=len(inputs) - len(waiting), desc="images", unit="image") as bar:
            dataset: Any = InputDataset(waiting, transform, shape=model.preprocess.shape) if waiting else []
            options: Any = {"collate_fn": list, "worker_init_fn": _quiet_worker}
            loader: Any = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, **options)
            for image, (entry, pixels) in zip(waiting, answers(model, loader), strict=True):
                entry = replace(entry, image=image)
                number = f"{len(journal.entries):06d}"
                if overlays and entry.status == ANSWERED:
                    entry = _drawn(model, entry, pixels, folder, f"overlays/{number}.png")
                if reports and entry.status != UNREADABLE and is_dicom(entry.image.path):
                    entry = _reported(model, entry, folder, f"reports/{number}.dcm")
                journal.add(entry)
                _write_row(tables, model.rules, entry, more)
                bar.update()
    finally:
        journal.close()
        if tables:
            tables.close()
        entries = _done(journal, inputs)
        write_predictions(model.rules, entries, folder)
    return Predictions(entries, len(inputs) - len(waiting), model.rules)


def _quiet_worker(_: int) -> None:
    """Leave Ctrl-C to the main process, whose end is not worth a traceback; errors of a worker are raised there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = lambda *_: None


def _done(journal: "Journal", inputs: Sequence[Input]) -> list[Entry]:
    return [journal.entries[one] for one in inputs if one in journal.entries]


def reading(model: BundleModel, accept: Sequence[str] = ()) -> Compose:
    """What an ``{"image": path}`` of :class:`InputDataset` goes through: refused by its tags, or read and preprocessed.

    Raises:
        VividError: an unknown tag in `accept`.
    """
    by_tags = RefuseByTagsd("image", metadata=model.metadata, accept=accept)
    return Compose([by_tags, *model.preprocess.transform().transforms])


def answers(model: BundleModel, batches: Iterable[Sequence[Mapping[str, Any]]]) -> Iterator[tuple[Entry, Tensor]]:
    """An entry for each item of :class:`InputDataset`, and the item's image as the network sees it.

    Raises:
        VividError: a record that contradicts itself.
    """
    limit = model.ood.limit
    for batch in batches:
        scored: Iterator[Any] = iter(())
        if images := [torch.as_tensor(item["image"]) for item in batch if item["status"] == ANSWERED]:
            scored = zip(images, *model(torch.stack(images)), strict=True)
        for item in batch:
            path = item["path"]
            entry = Entry(Input(path, 0, 0), item["status"], item["reason"], accepted=item["accepted"])
            if item["status"] != ANSWERED:
                yield entry, torch.empty(0)
                continue
            pixels, probabilities, distance = next(scored)
            if not distance <= limit:
                reason = f"{UNLIKE}: distance {distance:.1f}, limit {limit:.1f}"
                yield replace(entry, status=NOT_ASSESSED, reason=reason), pixels
                continue
            entry = replace(entry, probabilities=[round(float(value), 6) for value in probabilities])
            if wrong := verify(model.rules.record(path, entry.probabilities, entry.accepted), model.label_space):
                raise VividError(f"{path}: the findings contradict each other: {wrong[0].message}")
            yield entry, pixels


def _drawn(model: BundleModel, entry: Entry, pixels: Tensor, folder: Path, overlay: str) -> Entry:
    """The entry with its overlay, or with the reason why there is none."""
    answered = [i for i, rule in enumerate(model.rules.spec["fields"]) if not rule["unanswered"]]
    candidates = [i for i in answered if model.fields[i] != model.rules.spec["no_finding"]]
    shown = most_probable(np.array(entry.probabilities), candidates)
    if not shown:
        return replace(entry, reason="no overlay: the model answers no finding")
    maps = heat_maps(model.probabilities, pixels, shown)
    heats = [Heat(model.fields[i], entry.probabilities[i], one) for i, one in zip(shown, maps, strict=True)]
    try:
        save_overlay(entry.image.path, heats, model.preprocess, folder / overlay)
    except ImageError as error:  # the file is not what it was
        return replace(entry, reason=f"no overlay: {error}")
    return replace(entry, overlay=overlay)


def _reported(model: BundleModel, entry: Entry, folder: Path, report: str) -> Entry:
    """The entry with its report, or with the reason why there is none."""
    record = model.rules.record(entry.image.path, entry.probabilities or [0.0] * len(model.fields), entry.accepted)
    algorithm = Algorithm(model.name, record["provenance"]["labeller_version"][:LONG], model.fingerprint)
    try:
        write_sr(
            Record.from_dict(record),
            Path(entry.image.path),
            folder / report,
            algorithm=algorithm,
            not_assessed=entry.reason if entry.status == NOT_ASSESSED else None,
        )
    except VividError as error:
        return replace(entry, reason=f"{entry.reason}; no report: {error}".removeprefix("; "))
    return replace(entry, report=report)


class Journal:
    """``journal.jsonl`` in the folder of a run: settings in the first line, then an entry per image.

    A line that was cut off when the run was killed is dropped, and its image done again. So is an image that has
    changed since. A journal of other settings, or a damaged one, is refused by a VividError.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        path = folder / JOURNAL
        self.entries: dict[Input, Entry] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
        whole = [json.dumps(settings, sort_keys=True)]
        for number, line in enumerate(lines[:-1], 1):  # what follows the last line break was cut off
            try:
                data = json.loads(line)
            except ValueError as error:
                if number == len(lines) - 1:
                    break
                raise VividError(f"{path}:{number}: is damaged ({error}); delete it to begin again") from error
            if number > 1:
                whole.append(line)
                entry = Entry(**{**data, "image": Input(**data["image"])})
                self.entries[entry.image] = entry
            elif data != settings:
                raise VividError(
                    f"{folder}: holds answers of another model or with other settings; give another folder (--out)"
                )
        with whole_file(path) as part:
            part.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def add(self, entry: Entry) -> None:
        """Write an entry; it is with the operating system when this returns."""
        self.entries[entry.image] = entry
        self._file.write(json.dumps(asdict(entry)) + "\n")  # ASCII: names may hold bytes that are no UTF-8
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _places(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in TABLES}


def write_predictions(
    rules: DecisionRules, entries: Sequence[Entry], folder: Path, *, more: Sequence[str] | None = None
) -> None:
    """Write the tables and the records of a run, each file as a whole; a list without rows is not written.

    Args:
        more: columns of the table behind the findings; None: those that have any value.
    """
    if more is None:
        more = [name for name in ("overlay", "report", "accepted", "reason") if any(getattr(e, name) for e in entries)]
    with ExitStack() as stack:
        parts = {name: stack.enter_context(whole_file(place)) for name, place in _places(folder).items()}
        writer = PredictionsWriter(rules.fields, parts, more=more)
        for entry in entries:
            _write_row(writer, rules, entry, more)
        writer.close()
    for name in TABLES[2:]:
        if not (folder / name).stat().st_size:
            (folder / name).unlink()


def _write_row(writer: PredictionsWriter, rules: DecisionRules, entry: Entry, more: Sequence[str]) -> None:
    record = _record(rules, entry) if entry.status == ANSWERED else None
    writer.write(entry.image.path, entry.status, record, entry.reason, [getattr(entry, name) for name in more])


def _record(rules: DecisionRules, entry: Entry) -> dict[str, Any]:
    return rules.record(entry.image.path, entry.probabilities, entry.accepted)
