"""Whether images are there and can be read."""

import pyarrow as pa
import pytest

from vivid_monai.prepare.image_files import check_images
from vivid_monai.prepare.source import Rows

from .conftest import write_image


@pytest.fixture
def rows(tmp_path) -> Rows:
    write_image(tmp_path / "good.png", size=24)
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "empty.png").touch()
    images = ["cut.png", "good.png", "none.png", "empty.png"]
    table = pa.table({"#table": ["t"] * 4, "#row": [2, 3, 4, 5], "#key": images, "image": images})
    return Rows(table=table, n_read=4)


def test_none_looks_at_nothing(rows, tmp_path):
    check_images(rows, tmp_path, check="none", workers=1)
    assert rows.table.num_rows == 4


def test_files_lists_missing_and_empty_ones(rows, tmp_path):
    check_images(rows, tmp_path, check="files", workers=2)
    assert rows.table["image"].to_pylist() == ["cut.png", "good.png"]
    skipped = rows.all_skipped().to_pylist()
    assert [(s["row"], s["reason"]) for s in skipped] == [(4, "missing-file"), (5, "missing-file")]
    assert "No such file" in skipped[0]["detail"]
    assert "empty" in skipped[1]["detail"]


@pytest.mark.parametrize("workers", [1, 2])
def test_images_reads_every_one_and_gives_sizes(rows, tmp_path, workers):
    check_images(rows, tmp_path, check="images", workers=workers)
    assert rows.table.select(["image", "height", "width"]).to_pylist() == [
        {"image": "good.png", "height": 24, "width": 24}
    ]
    skipped = rows.all_skipped().to_pylist()
    assert [s["row"] for s in skipped] == [2, 4, 5]
    assert {s["reason"] for s in skipped} == {"unreadable-image"}
    assert all(name in s["detail"] for name, s in zip(("cut.png", "none.png", "empty.png"), skipped, strict=True))
