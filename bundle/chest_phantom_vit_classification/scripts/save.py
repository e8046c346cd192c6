"""Answers written as they come: a table and records. This file goes into every bundle."""

import csv
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from .answers import Answers


class SaveAnswersd(MapTransform):
    """Writes the answer to each image into ``predictions.csv`` and, as a UMS record, into ``records.jsonl``.

    The item's ``"path"`` is the image. The table has a row per image: image, status, then for every field its
    probability and its state. An image that is not assessed has neither, and no record. Both files are begun anew by
    the first item.

    Args:
        keys: the one key that holds the probabilities (F,), followed by the unlikeness of
            :class:`~scripts.assessed.Assessed`, over one half where the image is not to be answered.
        metadata: path of the bundle's metadata.json.
        output_dir: where the two files go.
    """

    def __init__(self, keys: KeysCollection, *, metadata: str, output_dir: str) -> None:
        super().__init__(keys)
        self.answers = Answers.of_bundle(metadata)
        self.folder = Path(output_dir)
        self._begun = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self._begin()
        for key in self.keys:
            *probabilities, unlikeness = d[key].tolist()
            record = self.answers.record(str(d["path"]), probabilities)
            if unlikeness > 0.5:
                self._add_row([d["path"], "not assessed", *("" for _ in self.answers.fields for _ in range(2))])
                continue
            cells = [cell for finding in record["findings"].values() for cell in _cells(finding)]
            self._add_row([d["path"], "answered", *cells])
            with (self.folder / "records.jsonl").open("a", encoding="utf-8") as records:
                records.write(json.dumps(record, ensure_ascii=False) + "\n")
        return d

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("predictions.csv", "records.jsonl"):
            (self.folder / name).write_text("", encoding="utf-8")
        self._add_row(["image", "status", *(name for one in self.answers.fields for name in (one, f"{one}: state"))])

    def _add_row(self, cells: list[Any]) -> None:
        with (self.folder / "predictions.csv").open("a", newline="", encoding="utf-8") as table:
            csv.writer(table, lineterminator="\n").writerow(cells)


def _cells(finding: Mapping[str, Any]) -> tuple[Any, Any]:
    return finding.get("score", ""), finding["state"] or ""
