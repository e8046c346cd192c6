"""The same image on several rows."""

import pyarrow as pa

from vivid_monai.prepare.image_files import drop_duplicates
from vivid_monai.prepare.source import Rows


def rows_of(**columns) -> Rows:
    n = len(columns["image"])
    own = {
        "#table": ["t"] * n,
        "#row": list(range(2, n + 2)),
        "#key": columns["image"],
        "id": [str(i) for i in range(n)],
    }
    return Rows(table=pa.table({**own, **columns}), n_read=n)


def test_equal_rows_leave_one_and_different_ones_none():
    rows = rows_of(image=["a", "b", "a", "c", "b", "a"], **{"finding.Edema": [1, 0, 1, 1, 1, 1]})
    drop_duplicates(rows)
    assert rows.table["#row"].to_pylist() == [2, 5]
    skipped = rows.all_skipped().to_pylist()
    assert [(s["row"], s["reason"]) for s in skipped] == [
        (3, "conflicting-duplicate"),
        (4, "duplicate"),
        (6, "conflicting-duplicate"),
        (7, "duplicate"),
    ]
    assert skipped[0]["detail"] == "rows 3, 6 of this image differ in finding.Edema"
    assert skipped[1]["detail"] == "says what row 2 says"


def test_slices_of_one_volume_are_different_images():
    rows = rows_of(image=["v", "v", "v", "w"], slice=pa.array([1, 2, 1, None], pa.int32()))
    drop_duplicates(rows)
    assert rows.table["#row"].to_pylist() == [2, 3, 5]


def test_nothing_repeated_nothing_dropped():
    rows = rows_of(image=["a", "b"])
    drop_duplicates(rows)
    assert (rows.table.num_rows, rows.all_skipped().num_rows) == (2, 0)
