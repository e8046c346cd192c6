"""``vivid predict``: findings of many image files, resumable; what is not assessed or cannot be read is listed."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.misc import is_dicom
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.postprocessing import ANSWERED, NOT_ASSESSED, UNREADABLE, DecisionRules, PredictionsWriter
from vivid_monai.deploy.sr import Algorithm, write_sr
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.base import library
from vivid_monai.evaluation.examples import blend
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.vit import ViT
from vivid_monai.storage.files import whole_file
from vivid_monai.storage.skipped import Skipped
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
OVERLAY_SIDE = 448  # pixels
UNLIKE = "unlike the images that the model was trained on"
RADIOGRAPHS = ("CR", "DX", "RG", "OT")
"""Modalities that a model of radiographs takes: radiographs, and what does not say what it is."""
BODY_PARTS = {
    "chest": ("CHEST", "THORAX", "LUNG", "RIB", "HEART", "TSPINE"),
    "lung": ("LUNG", "CHEST", "THORAX"),
    "heart": ("HEART", "CHEST", "THORAX"),
    "hand": ("HAND", "FINGER", "THUMB"),
    "foot": ("FOOT", "TOE", "CALCANEUS"),
    "head": ("HEAD", "SKULL", "BRAIN", "FACE"),
}
"""Anatomy of a manifest → what BodyPartExamined may contain; others are asked for by their own name."""
_ANYWHERE = {"other", "whole-body"}
_TAGS = ("Modality", "BodyPartExamined", "ViewPosition", "PatientOrientation", "NumberOfFrames")


@dataclass(frozen=True)
class Input:
    """A file as it was when it was found; another size or time makes it another input."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Entry:
    """What became of one image.

    Attributes:
        status: "answered", "not assessed" or "unreadable".
        reason: why it is not answered, or has no report although one was asked for.
        probabilities: of the fields in order, where answered.
        overlay, report: files in the folder of the run, "" where there is none.
    """

    image: Input
    status: str
    reason: str = ""
    probabilities: list[float] = field(default_factory=list)
    overlay: str = ""
    report: str = ""


def find_inputs(paths: Iterable[Path]) -> list[Input]:
    """Files as they are given, and every file under the folders that are given, in order, each once.

    Hidden files and folders under a folder are left out. What a file is, is decided later by its content.

    Raises:
        VividError: a path that does not exist, or no file at all.
    """
    found: dict[str, Input] = {}
    for path in paths:
        if not path.exists():
            raise VividError(f"{path}: there is no such file or folder")
        for file in _files(path):
            status = os.stat(file)
            found.setdefault(os.path.abspath(file), Input(str(file), status.st_size, status.st_mtime_ns))
    if not found:
        raise VividError("there is no file in what was given")
    return list(found.values())


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def objection(path: str, trained_on: Mapping[str, Sequence[str]]) -> str | None:
    """Why a DICOM file is not assessed, by its tags; None where they do not forbid it. Pixels are not read.

    Refused are several frames, a modality or a part of the body that was not trained on and, where the views of the
    training images are known or they are chests, oblique and lateral views if none were trained on. A view is lateral
    by ViewPosition or, where that is empty, by PatientOrientation (PS3.3 C.7.6.1.1.1: in a frontal view rows run from
    side to side, in a lateral one between front and back).

    Args:
        path: a file; one that is not DICOM has no tags.
        trained_on: :attr:`~vivid_monai.deploy.model.BundleModel.trained_on`.
    """
    try:
        tags = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        modality, part, view = (str(tags.get(name) or "").strip().upper() for name in _TAGS[:3])
        rows = [str(one).upper() for one in tags.get("PatientOrientation") or []]
        frames = int(tags.get("NumberOfFrames") or 1)
    except Exception:  # no DICOM, or damaged: reading its pixels says so
        return None
    modalities, anatomies, views = (set(trained_on[name]) for name in ("modality", "anatomy", "view"))
    radiographs = modalities & set(RADIOGRAPHS)
    if modality and modality not in modalities | (set(RADIOGRAPHS) if radiographs else {"OT"}):
        known = "a radiograph" if radiographs else " or ".join(sorted(modalities))
        # A code of the standard, and never free text, which might name a patient.
        return f"not {known}: its modality is {modality if len(modality) == 2 and modality.isalpha() else 'another'}"
    if frames > 1:
        return f"{frames} frames, not one image"
    parts = {word for one in anatomies for word in BODY_PARTS.get(one, (one.upper(),))}
    if part and not anatomies & _ANYWHERE and not any(one in part for one in parts):
        return f"not of the {' or '.join(sorted(anatomies))}: its tag BodyPartExamined names another part"
    if views or anatomies & {"chest", "lung", "heart"}:
        if view in ("LLO", "RLO") and "oblique" not in views:
            return "an oblique view, which the model was not trained on"
        if _is_lateral(view, rows) and not views & {"lateral", "LL", "RL"}:
            return "a lateral view, which the model was not trained on"
    return None


def _is_lateral(view: str, rows: list[str]) -> bool:
    if view:  # LLD and RLD are frontal views of a patient who lies on the side
        return view in ("LL", "RL") or ("LAT" in view and "DEC" not in view)
    return bool(rows) and rows[0][:1] in ("A", "P")


@dataclass(frozen=True)
class Predictions:
    """The result of a run: entries in the order of the inputs, and how many of them an earlier run had made."""

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
    """Predict the findings of every image, or say why not, and write :data:`FILES` into the folder.

    Run again with the same folder, it predicts what is missing. Interrupted, it writes what it has.

    Args:
        overlays: draw where a ViT looked at each answered image.
        reports: write a DICOM SR for each DICOM image that could be read.

    Raises:
        VividError: the folder holds predictions of another model or other settings, or cannot be written; overlays of
            a network without attention, or reports without highdicom are asked for; a record that contradicts itself.
    """
    if overlays and not isinstance(model.classifier.encoder, ViT):
        raise VividError(f"{model.name}: has no attention to draw; leave --overlays out")
    if reports:
        library("highdicom", '"vivid-monai[dicom-sr]"')  # now, and not once for every image
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": model.name, "version": model.version, "weights": model.fingerprint}  # one file, one runtime
    journal = Journal(folder, {**settings, "overlays": overlays, "reports": reports})
    waiting = [one for one in inputs if one not in journal.entries]
    try:
        with tqdm(total=len(inputs), initial=len(inputs) - len(waiting), desc="images", unit="image") as bar:
            dataset: Any = _Images(waiting, model) if waiting else []
            loader: Any = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
            for entry, picture in _answers(model, loader, overlays=overlays):
                number = f"{len(journal.entries):06d}"
                if picture:
                    entry = replace(entry, overlay=f"overlays/{number}.png")
                    save_overlay(*picture, model.preprocess, folder / entry.overlay)
                if reports and entry.status != UNREADABLE and is_dicom(entry.image.path):
                    entry = _reported(model, entry, folder, f"reports/{number}.dcm")
                journal.add(entry)
                bar.update()
    finally:
        journal.close()
        entries = [journal.entries[one] for one in inputs if one in journal.entries]
        write_predictions(model.rules, entries, folder)
    return Predictions(entries, len(inputs) - len(waiting))


def _answers(
    model: BundleModel, loader: Iterable[Any], *, overlays: bool
) -> Iterator[tuple[Entry, tuple[Tensor, NDArray] | None]]:
    """An entry for each image and, for the overlay of an answered one, its pixels and the attention on them."""
    limit = model.ood.limit
    for batch in loader:
        scored: Iterator[Any] = iter(())
        if images := [pixels for _, pixels in batch if pixels is not None]:
            stacked = torch.stack(images)
            maps = attention_maps(model.classifier, stacked) if overlays else [None] * len(images)
            scored = zip(*model(stacked), maps, strict=True)
        for entry, pixels in batch:
            if pixels is None:
                yield entry, None
                continue
            probabilities, distance, attention = next(scored)
            if not distance <= limit:
                reason = f"{UNLIKE}: distance {distance:.1f}, limit {limit:.1f}"
                yield replace(entry, status=NOT_ASSESSED, reason=reason), None
                continue
            entry = replace(entry, probabilities=[round(float(value), 6) for value in probabilities])
            if wrong := verify(model.rules.record(entry.image.path, entry.probabilities), model.label_space):
                raise VividError(f"{entry.image.path}: the findings contradict each other: {wrong[0].message}")
            yield entry, (pixels, attention) if overlays else None


def _reported(model: BundleModel, entry: Entry, folder: Path, report: str) -> Entry:
    """The entry with its report, or with the reason why there is none."""
    record = model.rules.record(entry.image.path, entry.probabilities or [0.0] * len(model.fields))
    algorithm = Algorithm(model.name, model.version, model.fingerprint)
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


class _Images(ImageDataset):
    """An entry and preprocessed pixels (C, H, W); None for these where the entry says why there is no answer."""

    def __init__(self, inputs: Sequence[Input], model: BundleModel) -> None:
        super().__init__([{"image": one.path, "id": one.path} for one in inputs], model.preprocess)
        self.inputs, self.trained_on = inputs, model.trained_on

    def __getitem__(self, index: Any) -> Any:
        """By the tags first: a cine or an ultrasound image is not assessed, whatever its pixels are."""
        image = self.inputs[index]
        if reason := objection(image.path, self.trained_on):
            return Entry(image, NOT_ASSESSED, reason), None
        item = super().__getitem__(index)
        if isinstance(item, Skipped):
            return Entry(image, UNREADABLE, item.reason), None
        return Entry(image, ANSWERED), item["image"]


class Journal:
    """``journal.jsonl`` in the folder of a run: settings in the first line, then an entry per image.

    A line that was cut off when the run was killed is dropped, and its image done again. So is an image that has
    changed since. A journal of other settings, or a damaged one, is refused by a VividError.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        path = folder / "journal.jsonl"
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
        self._file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def write_predictions(rules: DecisionRules, entries: Sequence[Entry], folder: Path) -> None:
    """Write the tables and the records of a run, each file as a whole; a list without rows is not written."""
    more = [name for name in ("overlay", "report", "reason") if any(getattr(one, name) for one in entries)]
    with whole_file(folder / "predictions.csv") as table, whole_file(folder / "records.jsonl") as records:
        writer = PredictionsWriter(rules.fields, table, records, more=more)
        for entry in entries:
            record = rules.record(entry.image.path, entry.probabilities) if entry.status == ANSWERED else None
            writer.write(entry.image.path, entry.status, record, [getattr(entry, name) for name in more])
        writer.close()
    for name, status in (("not_assessed.csv", NOT_ASSESSED), ("unreadable.csv", UNREADABLE)):
        listed = [[one.image.path, one.reason] for one in entries if one.status == status]
        (folder / name).unlink(missing_ok=True)
        if listed:
            with whole_file(folder / name) as part, part.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([["image", "reason"], *listed])


@torch.no_grad()
def attention_maps(classifier: Classifier, images: Tensor) -> NDArray[np.float32]:
    """Attention, mean over its heads, from what is pooled to the patches.

    That is SPD's, mean over its groups, where the classifier reads through it; else the last block's, from the CLS
    token (Caron et al. 2021, arXiv:2104.14294), from the patches where these are pooled, or the mean of both. It shows
    what was gathered from, and neither why nor for which finding.

    Args:
        images: (B, C, H, W), preprocessed.

    Returns:
        float32 (B, h, w); what is missing to a sum of 1 lies on the CLS token.
    """
    vit: ViT = classifier.encoder
    if classifier.spd is not None:
        return classifier.spd(vit(images)).attention.mean(1)[:, 1:].unflatten(1, vit.grid).numpy()
    attention: Any = vit.blocks[-1].attn
    kept = attention.use_flash_attention, attention.save_attn
    attention.use_flash_attention, attention.save_attn = False, True
    try:
        vit(images)
        weights = attention.att_mat.mean(1)
    finally:
        attention.use_flash_attention, attention.save_attn = kept
        attention.att_mat = torch.Tensor()
    rows = {"cls": weights[:, 0], "mean": weights[:, 1:].mean(1)}
    pooled = torch.stack([rows[part] for part in classifier.pool.split("+")]).mean(0)
    return pooled[:, 1:].unflatten(1, vit.grid).numpy()


def save_overlay(image: Tensor, attention: NDArray[np.float32], preprocess: Preprocess, path: Path) -> None:
    """Write one map over its image (C, H, W), as preprocessed, as a PNG."""
    mean, std = (np.atleast_1d(np.asarray(one))[0] for one in (preprocess.mean, preprocess.std))
    pixels = np.clip(image[0].numpy() * std + mean, 0, 1) * 255
    size = (OVERLAY_SIDE, OVERLAY_SIDE)
    grey = Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    with whole_file(path) as part:
        blend(grey, attention).save(part, "PNG")
