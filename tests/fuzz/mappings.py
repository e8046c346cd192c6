"""Mapping files with a mistake: told in one line, or a data set whose rows and patients are those of the table."""

import copy
import csv
import io
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz.damage import changed, damaged
from tests.fuzz.damage import one_line as told
from vivid_monai.errors import VividError, one_line
from vivid_monai.prepare import table
from vivid_monai.prepare.build import prepare

SECRET = "XQ47"
COLUMNS: dict[str, Any] = {
    "mapping_version": "1.0",
    "dataset": "fuzz",
    "source": "human",
    "labeller": "two readers",
    "image": {"template": "{folder}/{file}.png"},
    "patient": "mrn",
    "patient_ids": "text",
    "study": "study",
    "view": {"column": "taken", "values": {"pa": "PA", "ap": "AP", "": None}},
    "sex": "sex",
    "age": "age",
    "split": "part",
    "modality": "DX",
    "anatomy": "chest",
    "label_space": "chexpert-14",
    "label_columns": {
        "Edema": "oedema",
        "Fracture": {"column": "broken", "values": {"0": "absent"}, "other": "present"},
    },
    "values": {"1": "present", "0": "absent", "?": "uncertain", "": None},
}
LIST: dict[str, Any] = {name: one for name, one in COLUMNS.items() if name not in ("label_columns", "values")} | {
    "label_list": {"column": "found", "unlisted": "absent", "none": [""], "looked_for": ["Edema", "Fracture"]},
    "rows": "any",
    "reader": "reader",
    "box": {"x": "x", "y": "y", "width": "w", "height": "h"},
}


def rows(choose: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "folder": f"f{i % 3}",
            "file": f"i{i}",
            "mrn": f"{SECRET}{i // 2}",
            "study": f"s{i}",
            "taken": choose.choice(["pa", "ap", ""]),
            "sex": choose.choice(["M", "F", ""]),
            "age": choose.choice(["63", "058Y", "90+", ""]),
            "part": ["train", "train", "val", "test"][i // 2 % 4],
            "oedema": choose.choice(["1", "0", "?", ""]),
            "broken": choose.choice(["0", "1", "left"]),
            "found": choose.choice(["", "Edema", "Edema|Fracture"]),
            "reader": "R1",
            **dict.fromkeys("xywh", choose.choice(["", "7"])),
        }
        for i in range(24)
    ]


def check(choose: random.Random) -> str:
    """Change a mapping that is right in a place or two, and prepare a table by it."""
    content, given = rows(choose), copy.deepcopy(choose.choice([COLUMNS, LIST]))
    whole = choose.random() < 0.1
    text = json.dumps(given if whole else changed(given, choose)).encode()
    if not whole and choose.random() < 0.1:
        text = damaged(text, choose)
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(content[0]))
    writer.writeheader()
    writer.writerows(content)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "t.csv").write_text(out.getvalue(), encoding="utf-8")
        (folder / "map.json").write_bytes(text)
        try:
            source = table.read(folder / "t.csv", mapping=folder / "map.json", image_root=folder)
            made = prepare(source, check="none", on_contradiction="keep")
        except VividError as error:
            told(one_line(error), secrets=(SECRET,))
            if whole:
                raise
            return "refused"
        columns = made.manifest.table.to_pydict()
        kept, skipped = len(columns["id"]), made.skipped["row"].notna().sum()
        assert kept + skipped <= len(content)
        sides: dict[str, set[str]] = {}
        for patient, split in zip(columns["patient_id"], columns["split"], strict=True):
            sides.setdefault(patient, set()).add(split)
        assert all(len(found) == 1 for found in sides.values()), "a patient is on two sides"
        if not whole:
            return "prepared"
        assert kept == len(content)
        assert columns["patient_id"] == [row["mrn"] for row in content]
        return "prepared: as it was"
