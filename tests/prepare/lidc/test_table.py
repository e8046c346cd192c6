"""The frozen table comes back as it was written, and a table that does not fit itself is refused."""

import csv

import pytest

from vivid_monai.errors import VividError
from vivid_monai.images.volume import read_series
from vivid_monai.prepare.lidc.nodules import COLUMNS, nodules_of, read_table, write_table
from vivid_monai.prepare.lidc.reads import read_xml

from .making import Mark, Scan, balls, disc, roi, write_xml

SCAN = Scan("1.2.3")


@pytest.fixture
def nodules(tmp_path):
    def mark(name, malignancy, k, **more):
        return Mark(name, [roi(SCAN, k, disc(30, 40, 5))], malignancy, **more)

    sessions = [[mark("a", 1, 3), mark("b", 5, 9)], [mark("Nodule 001", 2, 3, changed={"texture": ""})]]
    SCAN.write(tmp_path / "ct", balls())
    series = read_series([str(path) for path in (tmp_path / "ct").iterdir()])
    return [n.measured(series) for n in nodules_of(read_xml(write_xml(tmp_path / "a.xml", SCAN.uid, sessions)))]


def test_a_table_comes_back_and_writes_the_same_bytes(tmp_path, nodules):
    first, second = tmp_path / "one.csv", tmp_path / "two.csv"
    write_table(nodules, first)
    back = read_table(first)
    write_table(back, second)
    assert first.read_bytes() == second.read_bytes()
    assert [n.readings for n in back] == [("1/a", "2/Nodule 001"), ("1/b",)]
    assert back[0].ratings["texture"] == (5, None)
    assert back[0].diameter_mm == pytest.approx(nodules[0].diameter_mm, abs=1e-3)


def test_its_columns_say_who_where_and_how_large(tmp_path, nodules):
    write_table(nodules, tmp_path / "t.csv")
    row = next(csv.DictReader((tmp_path / "t.csv").open()))
    assert tuple(row) == COLUMNS
    wanted = {
        "id": "1.2.3_01",
        "patient_id": "LIDC-IDRI-0001",
        "n_readers": "2",
        "readings": "1/a|2/Nodule 001",
        "malignancy": "1|2",
        "malignancy_mean": "1.5",
        "malignancy_median": "1.5",
        "texture": "5|",
        "texture_mean": "5",
        "sop_uid": SCAN.sop(3),
        "slice_index": "3",
        "x": "30",
        "y": "40",
        "z": "3",
        "x_mm": "-7.5",
        "y_mm": "0",
        "z_mm": "-12.5",
        "volume_mm3": f"{len(disc(30, 40, 5)) * 0.75**2 * 2.5:.3f}".rstrip("0"),
    }
    assert {name: row[name] for name in wanted} == wanted


def test_without_ct_it_leaves_millimetres_blank_and_comes_back_so(tmp_path, nodules):
    scan = read_xml(tmp_path / "a.xml")
    write_table(nodules_of(scan), tmp_path / "t.csv")
    (first, _) = read_table(tmp_path / "t.csv")
    assert (first.patient_id, first.x_mm, first.slice_index, first.volume_mm3) == (None, None, None, None)
    assert (first.x, first.y, first.sop_uid) == (30, 40, SCAN.sop(3))


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("malignancy", "1", "row 2: malignancy has 1 ratings for 2 readings"),
        ("malignancy", "1|6", "row 2: malignancy holds '1|6'"),
        ("malignancy", "1|3", "malignancy_median is '1.5', but its other cells give '2'"),
        ("malignancy_mean", "4", "malignancy_mean is '4', but its other cells give '1.5'"),
        ("n_readers", "4", "n_readers is '4'"),
        ("x", "left", "row 2: could not convert string to float: 'left'"),
        ("x", "", "row 2"),
        ("sop_uid", "", "series_uid, sop_uid or readings is blank"),
        ("number", "2", "id is '1.2.3_01'"),
    ],
)
def test_a_cell_that_cannot_be_is_named_with_its_row(tmp_path, nodules, column, cell, message):
    path = tmp_path / "t.csv"
    write_table(nodules, path)
    rows = list(csv.DictReader(path.open()))
    rows[0][column] = cell
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(VividError) as caught:
        read_table(path)
    assert message in str(caught.value)


def test_a_nodule_twice_a_missing_column_and_no_file_are_refused(tmp_path, nodules):
    path = tmp_path / "t.csv"
    write_table([nodules[0], nodules[0]], path)
    with pytest.raises(VividError, match=r"row 3: 1\.2\.3_01 or one of its readings is in an earlier row"):
        read_table(path)
    path.write_text("id,series_uid\n")
    with pytest.raises(VividError, match="no column study_uid"):
        read_table(path)
    with pytest.raises(VividError, match=r"gone\.csv"):
        read_table(tmp_path / "gone.csv")
