"""From a folder as TCIA distributes it to crops and a manifest; what is broken is listed, and the run goes on."""

import shutil

import numpy as np
import pytest
from pydicom import dcmread

from vivid_monai.data.splits import SplitRule
from vivid_monai.errors import VividError
from vivid_monai.images.read import read_image
from vivid_monai.prepare.build import prepare
from vivid_monai.prepare.lidc.nodules import read_table, write_table
from vivid_monai.prepare.lidc.source import CropRule, read, read_identities

from .conftest import N_PATIENTS, scan_of, sessions_of
from .making import header, write_xml

ONE = scan_of(1)


def made(root, tmp_path, check="files", **options):
    """Prepared with a salt under which no split of the ten patients is empty."""
    return prepare(read(root, out=tmp_path / "out", **options), salt="s3", val=0.3, test=0.3, check=check)


def reasons(prepared):
    return {(row["key"], row["reason"]) for row in prepared.skipped.to_dict("records")}


def folder_of(root, number):
    return next((root / f"LIDC-IDRI-{number:04d}").rglob("*.dcm")).parent


def test_every_nodule_is_a_row_with_its_crop_patient_and_state(lidc, tmp_path):
    prepared = made(lidc, tmp_path, check="images")
    rows = prepared.manifest.table.to_pylist()
    assert len(rows) == 2 * N_PATIENTS
    by_id = {row["id"]: row for row in rows}
    assert [by_id[f"1.2.{n}_01"]["finding.Malignancy"] for n in (1, 3)] == [0, 0]
    assert {row["finding.Malignancy"] for row in rows if "_0" in row["id"]} == {0, 1, 2}
    first = by_id["1.2.1_01"]
    assert (first["patient_id"], first["study_id"], first["slice"], first["slices"]) == (
        "LIDC-IDRI-0001",
        "1.2.9",
        1,
        3,
    )
    assert (first["height"], first["width"], first["modality"], first["anatomy"]) == (100, 100, "CT", "lung")
    assert all(row["split"] == SplitRule(salt="s3", val=0.3, test=0.3).of(row["patient_id"]) for row in rows)
    finding = next(one for one in prepared.manifest.records() if one.id == "1.2.1_01").findings["Malignancy"]
    assert {m.name: m.value for m in finding.measurements}["rating"] == 1


@pytest.mark.parametrize("number", [1, 2])
def test_the_crop_shows_the_nodule_of_its_row_in_the_middle(lidc, tmp_path, number):
    prepared = made(lidc, tmp_path)
    item = next(i for i in prepared.manifest.items() if i["id"] == _large(number))
    shown = read_image(item["image"], slice=item["slice"], window=(0, 2000))[0]
    assert shown[49:51, 49:51] == pytest.approx((40 + number + 1000) / 2000, abs=1e-3)
    assert np.argwhere(shown > 0.4).mean(axis=0) == pytest.approx([49.5, 49.5], abs=0.3)
    nodule = next(n for n in read_table(tmp_path / "out" / "nodules.csv") if n.id == item["id"])
    assert nodule.sop_uid == scan_of(number).sop(5)  # the slice of the largest outline, not the middle file


def _large(number):
    """The nodule of four readers; in scans from above it is the upper one."""
    return f"1.2.{number}_{'01' if number % 2 else '02'}"


def test_the_frozen_table_gives_the_same_nodules_without_any_xml(lidc, tmp_path):
    first = made(lidc, tmp_path)
    table = (tmp_path / "out" / "nodules.csv").rename(tmp_path / "frozen.csv")
    for path in lidc.rglob("*.xml"):
        path.unlink()
    again = made(lidc, tmp_path / "again", nodules=table)
    assert again.manifest.table.drop_columns(["image"]).equals(first.manifest.table.drop_columns(["image"]))
    assert (tmp_path / "again/out/nodules.csv").read_bytes() == table.read_bytes()
    names = sorted(path.name for path in (tmp_path / "out/crops").iterdir())
    for name in names:
        assert (tmp_path / "out/crops" / name).read_bytes() == (tmp_path / "again/out/crops" / name).read_bytes()
    assert len(names) == 20


def test_identities_need_no_ct(lidc, tmp_path):
    made(lidc, tmp_path)
    nodules, skips, notes = read_identities(lidc)
    frozen = read_table(tmp_path / "out" / "nodules.csv")
    assert [(n.id, n.readings, n.sop_uid, n.ratings) for n in nodules] == [
        (n.id, n.readings, n.sop_uid, n.ratings) for n in frozen
    ]
    assert skips.empty
    assert "XML: 50 readings." in notes
    write_table(nodules, tmp_path / "bare.csv")
    bare = made(lidc, tmp_path / "bare", nodules=tmp_path / "bare.csv").manifest.table
    assert bare["patient_id"].to_pylist().count("LIDC-IDRI-0003") == 2


def test_settings_decide_readers_rating_and_crop(lidc, tmp_path):
    marks = sessions_of(ONE, 1)
    for reader, malignancy in enumerate((1, 1, 1, 5)):
        marks[reader][0].malignancy = malignancy
    write_xml(next(lidc.rglob("LIDC-IDRI-0001/**/*.xml")), ONE.uid, marks)
    by_mean = made(lidc, tmp_path, min_readers=2, crops=CropRule(crop_mm=20, pixel_mm=1, slice_mm=1))
    assert len(by_mean.manifest) == N_PATIENTS
    assert by_mean.card["skipped"] == {"few-readers": N_PATIENTS}
    assert set(by_mean.manifest.table["height"].to_pylist()) == {20}
    assert len(read_table(tmp_path / "out" / "nodules.csv")) == 2 * N_PATIENTS  # the table keeps all


@pytest.mark.parametrize(("rating", "state"), [("mean", 2), ("median", 0)])
def test_mean_or_median_of_the_readers_decides_the_state(lidc, tmp_path, rating, state):
    sessions = sessions_of(ONE, 1)[:3]
    for reader, malignancy in enumerate((1, 1, 5)):  # mean 2.33, median 1
        sessions[reader][0].malignancy = malignancy
    write_xml(next(lidc.rglob("LIDC-IDRI-0001/**/*.xml")), ONE.uid, sessions)
    table = made(lidc, tmp_path, rating=rating).manifest.table
    assert dict(zip(table["id"].to_pylist(), table["finding.Malignancy"].to_pylist(), strict=True))["1.2.1_01"] == state


def test_what_is_broken_is_listed_and_the_rest_goes_on(lidc, tmp_path):
    shutil.rmtree(folder_of(lidc, 2))  # XML without scan
    next(lidc.rglob("LIDC-IDRI-0003/**/*.xml")).unlink()  # scan without XML
    (lidc / "bad.xml").write_text("<?xml version='1.0'?><LidcReadMessage><a>")
    (lidc / "cxr.xml").write_text("<?xml version='1.0'?><IdriReadMessage xmlns='http://www.nih.gov/idri'/>")
    write_xml(lidc / "again.xml", scan_of(4).uid, sessions_of(scan_of(4), 4))
    write_xml(lidc / "differs.xml", scan_of(5).uid, sessions_of(scan_of(4), 4))
    for path in folder_of(lidc, 6).iterdir():  # the slice of the larger nodule is truncated
        if dcmread(path).SOPInstanceUID == scan_of(6).sop(5):
            path.write_bytes(path.read_bytes()[:-4000])
    for path in folder_of(lidc, 8).iterdir():  # one slice is not there
        if dcmread(path).SOPInstanceUID == scan_of(8).sop(5):
            path.unlink()
    for path in folder_of(lidc, 9).glob("*.dcm"):
        ds = dcmread(path)
        ds.PatientID = ""
        ds.save_as(path)
    deflated = b"DICM\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99"
    (lidc / "head.dcm").write_bytes(b"\0" * 128 + deflated + b"garbage" * 5)
    (lidc / "notes.txt").write_text("no DICOM")
    xray = header("9.9")
    xray.Modality, xray.SeriesInstanceUID = "DX", "9.8"
    xray.save_as(lidc / "xray.dcm", enforce_file_format=True)

    prepared = made(lidc, tmp_path)
    found = reasons(prepared)
    assert {(f"1.2.2_0{n}", "no-dicom") for n in (1, 2)} <= found
    assert ("1.2.3", "no-nodules") in found
    assert {("1.2.4", "duplicate-xml"), ("1.2.5", "conflicting-xml"), ("1.2.5", "no-nodules")} <= found
    assert {(_large(6), "no-crop"), (_large(8), "unknown-slice")} <= found
    assert {(f"1.2.9_0{n}", "no-patient") for n in (1, 2)} <= found
    assert {reason for key, reason in found if key.endswith(("bad.xml", "cxr.xml"))} == {"malformed-xml", "cxr-read"}
    kept = set(prepared.manifest.table["id"].to_pylist())
    assert kept == {f"1.2.{n}_0{k}" for n in (1, 4, 7, 10) for k in (1, 2)} | {"1.2.6_01", "1.2.8_01"}
    assert prepared.card["rows"]["read"] == prepared.card["rows"]["kept"] + prepared.card["rows"]["skipped"]
    notes = " ".join(prepared.card["notes"])
    assert "1 other files: DICOM, DX." in notes
    assert "1 scans have slices that are missing" in notes
    assert (str(lidc / "head.dcm"), "unreadable-dicom") in found
    assert "1 other files: neither DICOM nor XML." in notes


def test_two_series_of_one_patient_are_two_scans_on_one_side_of_the_split(lidc, tmp_path):
    other = scan_of(1)
    other.uid = "1.2.77"
    other.write(folder_of(lidc, 1), lambda points: np.full(points.shape[:-1], -800.0))  # the same folder and patient
    write_xml(lidc / "77.xml", other.uid, sessions_of(other, 1))
    table = made(lidc, tmp_path).manifest.table.to_pylist()
    sides = {row["split"] for row in table if row["patient_id"] == "LIDC-IDRI-0001"}
    assert len(sides) == 1
    assert {row["id"] for row in table if row["patient_id"] == "LIDC-IDRI-0001"} >= {"1.2.77_01", "1.2.77_02"}


def test_a_reading_that_its_holes_leave_nothing_of_is_listed(lidc):
    sessions = sessions_of(ONE, 1)
    (lone,) = sessions[2][1].rois
    sessions[2][1].rois.append((*lone[:3], False))
    write_xml(next(lidc.rglob("LIDC-IDRI-0001/**/*.xml")), ONE.uid, sessions)
    nodules, skips, _ = read_identities(lidc)
    assert list(zip(skips["key"], skips["reason"], strict=True)) == [(ONE.uid, "empty-reading")]
    assert [n.number for n in nodules if n.series_uid == ONE.uid] == [1]


def test_what_cannot_be_read_at_all_is_one_error(lidc, tmp_path):
    with pytest.raises(VividError, match="not a folder"):
        read(tmp_path / "nowhere", out=tmp_path / "out")
    with pytest.raises(VividError, match="no CT series"):
        read(lidc / "tcia-lidc-xml", out=tmp_path / "out")
    with pytest.raises(VividError, match=r"no rated nodule in 0 XML files: give the readers' XML with --xml"):
        read(folder_of(lidc, 2), out=tmp_path / "out")
    with pytest.raises(VividError, match="min_readers is 0"):
        read(lidc, out=tmp_path / "out", min_readers=0)
    assert not (tmp_path / "out").exists()
