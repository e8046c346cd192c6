"""Images that are missing, unreadable, or on several rows."""

import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vivid_monai.prepare.image_files import check_images, drop_duplicates
from vivid_monai.prepare.source import Rows

from .conftest import values, write_image


@pytest.fixture
def rows(tmp_path) -> Rows:
    write_image(tmp_path / "good.png", size=24)
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "empty.png").touch()
    images = ["cut.png", "good.png", "none.png", "empty.png"]
    table = pd.DataFrame({"#table": ["t"] * 4, "#row": [2, 3, 4, 5], "#key": images, "image": images})
    return Rows(table=table, n_read=4)


def test_none_looks_at_nothing(rows, tmp_path):
    check_images(rows, tmp_path, check="none", workers=1)
    assert len(rows.table) == 4


def test_files_lists_missing_and_empty_ones(rows, tmp_path):
    check_images(rows, tmp_path, check="files", workers=2)
    assert values(rows.table["image"]) == ["cut.png", "good.png"]
    skipped = rows.all_skipped().to_dict("records")
    assert [(s["row"], s["reason"]) for s in skipped] == [(4, "missing-file"), (5, "missing-file")]
    assert "No such file" in skipped[0]["detail"]
    assert "empty" in skipped[1]["detail"]


def test_files_that_are_no_regular_ones_are_told_so(rows, tmp_path):
    os.mkfifo(tmp_path / "none.png")
    check_images(rows, tmp_path, check="files", workers=1)
    assert "none.png: is no regular file" in rows.all_skipped()["detail"].iloc[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_images_reads_every_one_and_gives_sizes(rows, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("vivid_monai.prepare.image_files._BATCH", 3)
    check_images(rows, tmp_path, check="images", workers=workers)
    assert values(rows.table[["image", "height", "width"]]) == [{"image": "good.png", "height": 24, "width": 24}]
    skipped = rows.all_skipped().to_dict("records")
    assert [s["row"] for s in skipped] == [2, 4, 5]
    assert {s["reason"] for s in skipped} == {"unreadable-image"}
    assert all(name in s["detail"] for name, s in zip(("cut.png", "none.png", "empty.png"), skipped, strict=True))


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((20, 30), np.uint8), "is black"),
        (np.full((20, 30), 90, np.uint8), "is of one grey"),
        (np.full((1, 1), 90, np.uint8), "has 1 x 1 pixels"),
        (np.arange(600, dtype=np.uint16).reshape(20, 30) % 16, "is nearly black"),
        (np.arange(70000, dtype=np.uint32).reshape(200, 350).astype(np.uint8) % 16, "is nearly black"),
        (np.arange(600, dtype=np.uint16).reshape(20, 30) * 6, None),
        (np.arange(600, dtype=np.uint32).reshape(20, 30).astype(np.uint8) % 64, None),
    ],
)
def test_images_that_show_nothing_are_dropped(tmp_path, pixels, says):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    write_image(tmp_path / "good.png", size=24)
    rows = rows_of(image=["a.png", "good.png"])
    check_images(rows, tmp_path, check="images", workers=1)
    skipped = rows.all_skipped().to_dict("records")
    assert [(s["row"], s["reason"]) for s in skipped] == ([(2, "blank-image")] if says else [])
    assert says is None or says in skipped[0]["detail"]


def test_what_worker_processes_scale_otherwise_is_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("vivid_monai.prepare.image_files._BATCH", 3)
    monkeypatch.setattr("vivid_monai.images.raster.NARROW", bytearray(16))
    names = [f"{i}.png" for i in range(6)]
    for name in names:
        Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 6).save(tmp_path / name)
    check_images(rows_of(image=names), tmp_path, check="images", workers=2)
    assert [message.split("/")[-1] for message in caplog.messages] == [
        "0.png: is a 16-bit image of 12-bit values; such images are scaled by 4095"
    ]


def rows_of(**columns) -> Rows:
    n = len(columns["image"])
    own = {
        "#table": ["t"] * n,
        "#row": list(range(2, n + 2)),
        "#key": columns["image"],
        "id": [str(i) for i in range(n)],
    }
    return Rows(table=pd.DataFrame({**own, **columns}), n_read=n)


def test_equal_rows_leave_one_and_different_ones_none():
    rows = rows_of(image=["a", "b", "a", "c", "b", "a"], **{"finding.Edema": [1, 0, 1, 1, 1, 1]})
    drop_duplicates(rows)
    assert values(rows.table["#row"]) == [2, 5]
    skipped = rows.all_skipped().to_dict("records")
    assert [(s["row"], s["reason"]) for s in skipped] == [
        (3, "conflicting-duplicate"),
        (4, "duplicate"),
        (6, "conflicting-duplicate"),
        (7, "duplicate"),
    ]
    assert skipped[0]["detail"] == "rows 3, 6 of this image differ in finding.Edema"
    assert skipped[1]["detail"] == "says what row 2 says"


def test_slices_of_one_volume_are_different_images():
    rows = rows_of(image=["v", "v", "v", "w"], slice=pd.array([1, 2, 1, None], "Int32"))
    drop_duplicates(rows)
    assert values(rows.table["#row"]) == [2, 3, 5]


def test_nothing_repeated_nothing_dropped():
    rows = rows_of(image=["a", "b"])
    drop_duplicates(rows)
    assert (len(rows.table), len(rows.all_skipped())) == (2, 0)
