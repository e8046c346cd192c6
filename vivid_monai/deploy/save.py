"""Answers written as they come: a table and records. This file goes into every bundle."""

import csv
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from vivid_monai.deploy.answers import Answers


class SaveAnswersd(MapTransform):
    """Writes the answer to each image into ``predictions.csv`` and, as a UMS record, into ``records.jsonl``.

    The item's ``"path"`` is the image. The table has a row per image: image, then for every field its probability and
    its state. Both files are begun anew by the first item.

    Args:
        keys: the one key that holds probabilities (F,).
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
            record = self.answers.record(str(d["path"]), d[key].tolist())
            findings = record["findings"]
            with (self.folder / "predictions.csv").open("a", newline="", encoding="utf-8") as table:
                cells = [cell for field in findings.items() for cell in _cells(*field)]
                csv.writer(table, lineterminator="\n").writerow([d["path"], *cells])
            with (self.folder / "records.jsonl").open("a", encoding="utf-8") as records:
                records.write(json.dumps(record, ensure_ascii=False) + "\n")
        return d

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "records.jsonl").write_text("", encoding="utf-8")
        names = [name for field in self.answers.fields for name in (field, f"{field}: state")]
        with (self.folder / "predictions.csv").open("w", newline="", encoding="utf-8") as table:
            csv.writer(table, lineterminator="\n").writerow(["image", *names])


def _cells(field: str, finding: Mapping[str, Any]) -> tuple[Any, Any]:
    return finding.get("score", ""), finding["state"] or ""
