"""Items are made when asked for, and are what they were as a list."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.data.test_manifest import PLAIN, make
from vivid_monai.data.items import Items
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.storage.arrow import ArrowFile
from vivid_monai.ums.record import Finding, ImageInfo

N = 5000  # more than are made at once
FIELDS = ["Fracture", "Edema"]


def image(number: int) -> ImageInfo:
    return ImageInfo(f"{number}.nii", slice=number % 7, slices=7) if number % 2 else ImageInfo(f"{number}.png")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    states = ("present", "absent", "uncertain", None)
    records = [
        replace(
            PLAIN,
            id=f"i{n}",
            patient_id=f"p{n // 3}",
            image=image(n),
            findings={"Edema": Finding(states[n % 4]), "Fracture": Finding(states[n // 4 % 4])},
        )
        for n in range(N)
    ]
    return make(records, ["train" if n // 3 % 5 else "val" for n in range(N)], image_root="/root/images")


def plain(item: dict) -> dict:
    assert isinstance(item["states"], np.ndarray)
    assert item["states"].dtype == np.int64
    return {**item, "states": item["states"].tolist()}


def expected(manifest: Manifest, fields: list[str]) -> list[dict]:
    """What the items are, from the table's own rows."""
    rows = []
    for row in manifest.table.to_pylist():
        item = {"image": os.path.join("/root/images", row["image"]), "id": row["id"], "patient_id": row["patient_id"]}
        item["states"] = [row[f"finding.{field}"] for field in fields]
        rows.append(item | ({} if row["slice"] is None else {"slice": row["slice"]}))
    return rows


def test_they_are_the_rows_however_they_are_read(manifest):
    train = manifest.select("train")
    items, rows = train.items(FIELDS), expected(train, FIELDS)
    assert len(items) == len(rows)
    assert [plain(item) for item in items] == rows
    assert [plain(items[i]) for i in range(len(items))] == rows
    assert (plain(items[-1]), plain(items[np.int64(3)])) == (rows[-1], rows[3])
    assert plain(train.items()[0])["states"] == train.states()[0].tolist()
    with pytest.raises(IndexError):
        items[len(items)]


@pytest.mark.parametrize(
    "part", [slice(None, 10), slice(4090, 4200), slice(-7, None), slice(None, None, 3), slice(50, 10, -4), slice(5, 5)]
)
def test_a_slice_is_of_the_same_kind(manifest, part):
    items, rows = manifest.items(FIELDS), expected(manifest, FIELDS)
    assert isinstance(items[part], Items)
    assert [plain(item) for item in items[part]] == rows[part]
    assert [plain(item) for item in items[part][1:]] == rows[part][1:]
    assert len(items[part]) == len(rows[part])


def test_a_field_asked_twice_and_none_at_all(manifest):
    assert manifest.items(["Edema", "Edema"])[0]["states"].tolist() == [1, 1]
    assert manifest.items([])[0]["states"].shape == (0,)
    with pytest.raises(VividError, match="Fractur"):
        manifest.items(["Fractur"])


@pytest.fixture(params=["in memory", "mapped"])
def items(manifest, request, tmp_path) -> Items:
    if request.param == "in memory":
        return manifest.items(FIELDS)
    file = ArrowFile(tmp_path / "m.arrow", "key")
    table = file.open_or_make(manifest.table.schema, manifest.table.to_batches(max_chunksize=700))
    assert table is not None
    return Items(table, ["finding.Fracture", "finding.Edema"], root="/root/images", file=file)


def test_they_come_out_of_a_pickle_as_they_went_in(items, manifest):
    again = pickle.loads(pickle.dumps(items[10:4500]))
    assert [plain(item) for item in again] == expected(manifest, FIELDS)[10:4500]


def first_states(batch: list[dict]) -> torch.Tensor:
    return torch.tensor(np.stack([item["states"] for item in batch]))


def test_worker_processes_read_them(items, manifest):
    loader = DataLoader(
        items[:900], batch_size=100, collate_fn=first_states, num_workers=2, multiprocessing_context="fork"
    )
    assert torch.cat(list(loader)).tolist() == manifest.states(FIELDS)[:900].tolist()


def test_a_process_that_is_started_afresh_reads_them(items, manifest):
    code = "import pickle, sys; print([item['id'] for item in pickle.load(sys.stdin.buffer)])"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(items[:50]), capture_output=True, check=True)
    assert done.stdout.decode().strip() == str([f"i{n}" for n in range(50)])
