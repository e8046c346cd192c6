"""The folder of a prediction run: a journal that resumes it, tables, records, attention overlays."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vivid_monai.deploy.postprocessing import ANSWERED, NOT_ASSESSED, UNREADABLE, DecisionRules, PredictionsWriter
from vivid_monai.errors import VividError
from vivid_monai.evaluation.examples import blend
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.vit import ViT
from vivid_monai.storage.files import whole_file

FILES = {
    "predictions.csv": "a row per image: its status and, per finding, probability and state",
    "records.jsonl": "the answered images as UMS records",
    "not_assessed.csv": "images unlike what the model was trained on, with the reason",
    "unreadable.csv": "files that could not be read, with the reason",
    "overlays/": "where the ViT looked",
    "reports/": "DICOM SR of the DICOM images",
}
OVERLAY_SIDE = 448
"""Pixels of an overlay."""


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


class Journal:
    """``journal.jsonl`` in the folder of a run: settings in the first line, then an entry per image.

    A line that was cut off when the run was killed is dropped, and its image done again. So is an image that has
    changed since.

    Args:
        folder: of the run.
        settings: what all predictions depend on; a journal of other settings is refused.

    Raises:
        VividError: the journal is of another model or other settings, or is none.
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
        """Close the file."""
        self._file.close()


def write_predictions(rules: DecisionRules, entries: Sequence[Entry], folder: Path) -> None:
    """Write the tables and the records of a run, each file as a whole; a list without rows is not written.

    Raises:
        VividError: the folder cannot be written.
    """
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
    """Attention in the last block, mean over its heads, from what is pooled to the patches.

    That is from the CLS token (Caron et al. 2021, arXiv:2104.14294), or the mean over the patches where these are
    pooled. It shows what the last block gathered from, and neither why nor for which finding.

    Args:
        images: (B, C, H, W), preprocessed.

    Returns:
        float32 (B, h, w); what is missing to a sum of 1 lies on the CLS token.
    """
    vit: ViT = classifier.encoder
    attention: Any = vit.blocks[-1].attn
    kept = attention.use_flash_attention, attention.save_attn
    attention.use_flash_attention, attention.save_attn = False, True
    try:
        vit(images)
        weights = attention.att_mat.mean(1)
    finally:
        attention.use_flash_attention, attention.save_attn = kept
        attention.att_mat = torch.Tensor()
    rows = {"cls": weights[:, 0], "mean": weights[:, 1:].mean(1)}[classifier.pool]
    return rows[:, 1:].unflatten(1, vit.grid).numpy()


def save_overlay(image: Tensor, attention: NDArray[np.float32], preprocess: Preprocess, path: Path) -> None:
    """Write one map over its image (C, H, W), as preprocessed, as a PNG."""
    mean, std = (np.atleast_1d(np.asarray(one))[0] for one in (preprocess.mean, preprocess.std))
    pixels = np.clip(image[0].numpy() * std + mean, 0, 1) * 255
    size = (OVERLAY_SIDE, OVERLAY_SIDE)
    grey = Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    with whole_file(path) as part:
        blend(grey, attention).save(part, "PNG")
