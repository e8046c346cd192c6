"""ChestX-ray14: both tables, the official lists, boxes in the frame of the files."""

import re
from pathlib import Path, PurePath

import pytest

from vivid_monai.data.splits import SplitError
from vivid_monai.errors import VividError
from vivid_monai.prepare import nih
from vivid_monai.prepare.build import prepare
from vivid_monai.ums.label_space import load_label_space

from .conftest import NIH_2020, values, write_image

NIH_2017 = NIH_2020 + ","


def lists(root, *, test: range, train_val: range):
    for name, patients in (("test_list.txt", test), ("train_val_list.txt", train_val)):
        (root / name).write_text("\n".join(f"{patient:08d}_000.png" for patient in patients) + "\n")


def add_row(root, row):
    with (root / "Data_Entry_2017_v2020.csv").open("a") as table:
        table.write(row + "\n")


def test_listed_is_present_unlisted_absent_and_no_finding_all_absent(nih_root):
    table = nih.read(nih_root).rows.table
    fields = load_label_space("nih-14").fields
    listed = {field: values(table[f"finding.{field}"]) for field in fields}
    every_third = [int(patient % 3 == 0) for patient in range(1, 31)]
    assert listed["Edema"] == listed["Pleural Thickening"] == every_third
    assert all(listed[field] == [0] * 30 for field in fields if field not in ("Edema", "Pleural Thickening"))
    row = values(table)[0]
    assert (row["id"], row["patient_id"], row["image"]) == (
        "00000001_000",
        "00000001",
        "images_002/images/00000001_000.png",
    )
    assert (row["age"], row["sex"], row["view"], row["labeller_version"]) == (21.0, "F", "PA", "2020")


def test_the_older_table_with_its_broken_header_gives_the_same(tmp_path, nih_root):
    old = tmp_path / "old"
    (nih_root / "images_001").rename(tmp_path / "old_images")
    old.mkdir()
    for patient in range(1, 31):
        write_image(old / "images" / f"{patient:08d}_000.png")
    lines = (nih_root / "Data_Entry_2017_v2020.csv").read_text().splitlines()[1:]
    cells = [line.split(",") for line in lines]
    aged = [",".join([*row[:4], f"{int(row[4]):03d}Y", *row[5:], ""]) for row in cells]
    (old / "Data_Entry_2017.csv").write_text("\n".join([NIH_2017, *aged]) + "\n")
    older = nih.read(old).rows.table
    newer = nih.read(nih_root).rows.table
    same = [name for name in newer if name not in ("image", "labeller_version", "#table")]
    assert values(older[same]) == values(newer[same])
    assert set(older["labeller_version"]) == {"2017"}


@pytest.mark.parametrize(("text", "years"), [("058Y", 58.0), ("006M", 0.5), ("", None), ("60", 60.0)])
def test_ages(nih_root, text, years):
    add_row(nih_root, f"00000099_000.png,No Finding,0,99,{text},M,AP,1,1,1,1")
    assert values(nih.read(nih_root).rows.table["age"])[-1] == years


def test_an_age_that_cannot_be_is_listed(nih_root):
    write_image(nih_root / "images_001/images/00000099_000.png")
    add_row(nih_root, "00000099_000.png,No Finding,0,99,411,M,AP,1,1,1,1")
    prepared = prepare(nih.read(nih_root), val=0.3)
    assert prepared.card["skipped"] == {"invalid-range": 1}
    assert prepared.skipped["detail"].tolist() == ["411.0 is greater than the maximum of 130"]


def test_the_official_lists_are_kept(nih_root):
    lists(nih_root, test=range(1, 11), train_val=range(11, 30))
    prepared = prepare(nih.read(nih_root), val=0.3)
    assert prepared.manifest.splits["official"] == ["test"]
    assert prepared.manifest.select("test").patients().tolist() == [f"{p:08d}" for p in range(1, 11)]
    assert {split: n["images"] for split, n in prepared.card["splits"].items()}["test"] == 10
    assert prepared.card["skipped"] == {"not-in-lists": 1}
    assert prepared.skipped["key"].tolist() == ["00000030_000.png"]


def test_a_patient_on_both_official_lists_is_an_error_that_names_the_rows(nih_root):
    write_image(nih_root / "images_001/images/00000001_001.png")
    add_row(nih_root, "00000001_001.png,No Finding,1,1,58,M,PA,1,1,1,1")
    lists(nih_root, test=range(1, 11), train_val=range(11, 31))
    with (nih_root / "train_val_list.txt").open("a") as out:
        out.write("00000001_001.png\n")
    with pytest.raises(SplitError, match=r"row 2 \(test\) and .*, row 32 \(train\)"):
        prepare(nih.read(nih_root), val=0.0)


def test_half_a_pair_of_lists_or_an_image_on_both_is_an_error(nih_root):
    (nih_root / "test_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(VividError, match=r"not train_val_list\.txt"):
        nih.read(nih_root)
    (nih_root / "train_val_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(VividError, match="both official lists: 00000001_000"):
        nih.read(nih_root)


def test_boxes_are_in_pixels_of_the_files(nih_root):
    # As distributed: the header has more cells than the rows, and a box may use the older name of a finding.
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    rows = ["00000003_000.png,Edema,100,200,300.5,400,,,", "00000099_000.png,Infiltrate,1,1,1,1,,,"]
    (nih_root / "BBox_List_2017.csv").write_text("\n".join([header, *rows]) + "\n")
    prepared = prepare(nih.read(nih_root), val=0.3)
    (record,) = [r for r in prepared.manifest.records() if r.findings["Edema"].boxes]
    (box,) = record.findings["Edema"].boxes
    assert (record.id, record.image.height, record.image.width) == ("00000003_000", 512, 512)
    assert (box.x, box.y, box.width, box.height) == (50.0, 100.0, 150.25, 200.0)
    notes = " ".join(prepared.card["notes"])
    assert "Boxes on 1 images" in notes
    assert "1 boxes are on images or findings that are not in this manifest" in notes


def test_without_files_boxes_keep_their_frame_and_the_card_says_that_nobody_looked(nih_root):
    (nih_root / "BBox_List_2017.csv").write_text("Image Index,Finding Label,x,y,w,h\n00000003_000.png,Edema,1,2,3,4\n")
    prepared = prepare(nih.read(nih_root, find_files=False), val=0.3, check="none")
    record = next(r for r in prepared.manifest.records() if r.findings["Edema"].boxes)
    assert (record.image.width, record.findings["Edema"].boxes[0].x) == (1024, 1.0)
    assert "NOT CHECKED" in prepared.card["image_check"]


def test_an_image_with_a_box_on_two_equal_rows_is_a_duplicate(nih_root):
    (nih_root / "BBox_List_2017.csv").write_text("Image Index,Finding Label,x,y,w,h\n00000003_000.png,Edema,1,2,3,4\n")
    add_row(nih_root, (nih_root / "Data_Entry_2017_v2020.csv").read_text().splitlines()[3])
    prepared = prepare(nih.read(nih_root), val=0.3)
    assert prepared.card["skipped"] == {"duplicate": 1}
    assert sum(bool(record.findings["Edema"].boxes) for record in prepared.manifest.records()) == 1


def test_a_box_outside_the_image_is_listed(nih_root):
    (nih_root / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,x,y,w,h\n00000003_000.png,Edema,900,2,300,4\n"
    )
    prepared = prepare(nih.read(nih_root), val=0.3)
    assert prepared.card["skipped"] == {"invalid-box-outside": 1}
    assert prepared.skipped["key"].tolist() == ["00000003_000.png"]


@pytest.mark.parametrize(
    "row", ["00000003_000.png,Edemma,1,2,3,4", "00000003_000.png,Edema,1,2,3", "00000003_000.png,Edema,a,2,3,4"]
)
def test_a_broken_box_is_an_error_that_names_the_row(nih_root, row):
    (nih_root / "BBox_List_2017.csv").write_text(f"Image Index,Finding Label,x,y,w,h\n{row}\n")
    with pytest.raises(VividError, match=r"BBox_List_2017\.csv: row 2"):
        nih.read(nih_root)


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (
            "00000099_000.png,Edemma,0,99,58,M,PA,1,1,1,1",
            "bad-value",
            "'Finding Labels' holds 'Edemma'.*did you mean 'Edema'",
        ),
        ("00000099_000.png,No Finding|Edema,0,99,58,M,PA,1,1,1,1", "bad-value", "'No Finding' alone"),
        ("00000099_000.png,Edema,0,98,58,M,PA,1,1,1,1", "patient-mismatch", "different patients"),
        ("99.png,Edema,0,99,58,M,PA,1,1,1,1", "bad-path", "NNNNNNNN_NNN"),
        ("00000099_000.png,Edema,0,99,58,M", "ragged-row", "truncated"),
    ],
)
def test_bad_rows_are_listed(nih_root, row, reason, detail):
    add_row(nih_root, row)
    rows = nih.read(nih_root).rows
    (skipped,) = rows.all_skipped().to_dict("records")
    assert (skipped["row"], skipped["reason"]) == (32, reason)
    assert re.search(detail, skipped["detail"])
    assert (rows.n_read, len(rows.table)) == (31, 30)


def test_other_label_spaces_get_what_they_share(nih_root):
    table = nih.read(nih_root, label_space="chexpert-14").rows.table
    assert values(table["finding.Edema"])[:3] == [0, 0, 1]
    assert values(table["finding.No Finding"])[:3] == [1, 1, 0]
    assert set(table["finding.Fracture"]) == {-1}
    with pytest.raises(VividError, match="shares no concept"):
        nih.read(nih_root, label_space="organamnist-11")


def test_no_table_and_no_images_are_errors(tmp_path):
    with pytest.raises(VividError, match=r"Data_Entry_2017_v2020\.csv"):
        nih.read(tmp_path)
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(NIH_2020 + "\n")
    with pytest.raises(VividError, match="--check none"):
        nih.read(tmp_path)


@pytest.mark.real_data
@pytest.mark.parametrize(("folder", "images", "patients", "boxes"), [("nih", 730, 500, 30), ("nih64", 655, None, 0)])
def test_the_real_sets_come_through_whole(real_data, folder, images, patients, boxes):
    root = real_data / folder
    prepared = prepare(nih.read(root))
    manifest = prepared.manifest
    assert prepared.card["rows"] == {"read": images, "kept": images, "skipped": 0}
    lines = [
        line.split(",")[1].split("|") for line in (root / "Data_Entry_2017_v2020.csv").read_text().splitlines()[1:]
    ]
    for field, position in (
        ("Pneumonia", "Pneumonia"),
        ("Effusion", "Effusion"),
        ("Pleural Thickening", "Pleural_Thickening"),
    ):
        expected = sum(position in labels for labels in lines)
        assert (manifest.states([field]) == 1).sum() == expected
    if patients is not None:
        assert len(set(manifest.patients())) == patients
    with_boxes = [record for record in manifest.records() if any(f.boxes for f in record.findings.values())]
    assert len(with_boxes) == boxes
    assert all(record.image.width == 256 for record in with_boxes)


@pytest.mark.parametrize(
    ("names", "content"),
    [
        (("test_list_NIH.txt", "train_val_list_NIH.txt"), "{:08d}_000.png\n"),
        (("Test_List.txt", "train-val_list.txt"), "{:08d}_000.png\r\n"),
        (("test_list.txt", "train_val_list.txt"), "images_001/images/{:08d}_000.jpg 0 1\n"),
        (("lists/test_list.txt", "lists/train_val_list.TXT"), "{:08d}_000.png\n"),
    ],
)
def test_official_lists_under_every_name_in_use(nih_root, names, content):
    for name, patients in zip(names, (range(1, 11), range(11, 31)), strict=True):
        text = "".join(content.format(one) for one in patients)
        (nih_root / name).parent.mkdir(exist_ok=True)
        (nih_root / name).write_text(text, encoding="utf-8-sig", newline="")
    prepared = prepare(nih.read(nih_root), val=0.3)
    assert prepared.manifest.select("test").patients().tolist() == [f"{p:08d}" for p in range(1, 11)]
    assert len(prepared.manifest) == 30
    assert [source["file"] for source in prepared.card["sources"]][1:] == sorted(PurePath(name).name for name in names)


def test_two_lists_of_one_side_must_agree(nih_root):
    lists(nih_root, test=range(1, 11), train_val=range(11, 31))
    (nih_root / "test_list_NIH.txt").write_bytes((nih_root / "test_list.txt").read_bytes())
    assert len(prepare(nih.read(nih_root), val=0.3).manifest) == 30
    (nih_root / "test_list_NIH.txt").write_text("00000001_000.png\n")
    with pytest.raises(VividError, match=r"test_list\.txt and test_list_NIH\.txt differ"):
        nih.read(nih_root)


def test_copies_in_jpeg_are_found_by_their_names(nih_root):
    for path in sorted(nih_root.rglob("*.png")):
        path.rename(path.with_suffix(".jpg"))
    (nih_root / "BBox_List_2017.csv").write_text("Image Index,Finding Label,x,y,w,h\n00000003_000.png,Edema,1,2,3,4\n")
    prepared = prepare(nih.read(nih_root), val=0.3)
    assert len(prepared.manifest) == 30
    assert {Path(item["image"]).suffix for item in prepared.manifest.items()} == {".jpg"}
    table = nih_root / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace(".png", ".JPG"))
    again = prepare(nih.read(nih_root), val=0.3).manifest
    assert again.table["id"].to_pylist() == prepared.manifest.table["id"].to_pylist()
    assert sum(one is not None for one in again.table["boxes"].to_pylist()) == 1
