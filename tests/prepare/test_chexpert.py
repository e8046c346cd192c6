"""CheXpert: labels as distributed, the official split, bad rows listed."""

from pathlib import Path

import pyarrow.compute as pc
import pytest

from vivid_monai.data.splits import SplitError
from vivid_monai.errors import VividError
from vivid_monai.prepare import chexpert
from vivid_monai.prepare.build import prepare
from vivid_monai.prepare.source import ROW

from .conftest import CHEXPERT_HEADER, chexpert_row, values, write_image

PATH = "CheXpert-v1.0/train/patient00007/study2/view1_frontal.jpg"


def write_train(root: Path, *rows: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "train.csv").write_text("\n".join([CHEXPERT_HEADER, *rows]) + "\n")
    return root


def states(source, field):
    return values(source.rows.table[f"finding.{field}"])


def test_cells_become_states_and_the_path_tells_patient_and_study(tmp_path):
    labels = ["1.0", "0.0", "-1.0", "", "1", "0", "-1"]
    source = chexpert.read(write_train(tmp_path / "c", chexpert_row(PATH, *labels, sex="Male", age="90")))
    row = values(source.rows.table)[0]
    fields = [name.removeprefix("finding.") for name in row if name.startswith("finding.")]
    assert fields == CHEXPERT_HEADER.split(",")[5:]
    assert [row[f"finding.{field}"] for field in fields] == [1, 0, 2, -1, 1, 0, 2] + [-1] * 7
    assert row["id"] == "train/patient00007/study2/view1_frontal"
    assert row["image"] == "train/patient00007/study2/view1_frontal.jpg"
    assert (row["patient_id"], row["study_id"]) == ("patient00007", "patient00007/study2")
    assert (row["sex"], row["age"], row["view"], row["split"]) == ("M", 90.0, "AP", None)
    assert (row["modality"], row["anatomy"], row["source"]) == ("DX", "chest", "report")


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0-small/", "CheXpert-v1.0/", "", "/mnt/data/train/x/"])
def test_any_prefix_of_the_path_will_do(tmp_path, prefix):
    path = prefix + "train/patient00007/study2/view1_frontal.jpg"
    source = chexpert.read(write_train(tmp_path / "c", chexpert_row(path)))
    assert values(source.rows.table["image"]) == ["train/patient00007/study2/view1_frontal.jpg"]


@pytest.mark.parametrize(
    ("tag", "view"),
    [
        ("Frontal,AP", "AP"),
        ("Frontal,PA", "PA"),
        ("Frontal,LL", "frontal"),
        ("Frontal,", "frontal"),
        ("Lateral,", "lateral"),
    ],
)
def test_views(tmp_path, tag, view):
    source = chexpert.read(write_train(tmp_path / "c", chexpert_row(PATH, view=tag)))
    assert values(source.rows.table["view"]) == [view]


def test_minus_two_and_other_rubbish_are_listed_with_row_and_column(tmp_path):
    good = PATH.replace("00007", "00008")
    rows = [chexpert_row(PATH, "", "-2"), chexpert_row(good), chexpert_row(PATH, sex="X"), chexpert_row("a/b.jpg")]
    source = chexpert.read(write_train(tmp_path / "c", *rows))
    assert values(source.rows.table[ROW]) == [3]
    skipped = source.rows.all_skipped().to_dict("records")
    assert [(s["row"], s["reason"]) for s in skipped] == [(2, "bad-value"), (4, "bad-value"), (5, "bad-path")]
    assert "'Enlarged Cardiomediastinum' holds '-2'" in skipped[0]["detail"]
    assert "'Sex' holds 'X'" in skipped[1]["detail"]
    assert source.rows.n_read == 4


def test_valid_is_test_and_train_is_drawn_by_patient(chexpert_root):
    manifest = prepare(chexpert.read(chexpert_root), val=0.3).manifest
    assert manifest.splits == {"official": ["test"], "salt": "vivid-med", "val": 0.3, "test": 0.0}
    test = manifest.select("test").table
    assert sorted(test["id"].to_pylist())[0] == "valid/patient60001/study1/view1_frontal"
    assert set(test["source"].to_pylist()) == {"human"}
    assert len(test) == 2
    assert len(manifest.select("train")) + len(manifest.select("val")) == 40


def test_with_a_test_table_valid_is_val_and_train_is_whole(chexpert_root):
    path = "test/patient64741/study1/view1_frontal.jpg"
    write_image(chexpert_root / path)
    names = CHEXPERT_HEADER.split(",")[5:]
    table = [",".join(["Path", *names]), ",".join([path, *["0"] * 14])]
    (chexpert_root / "groundtruth.csv").write_text("\n".join(table) + "\n")
    prepared = prepare(chexpert.read(chexpert_root))
    counts = {split: part["images"] for split, part in prepared.card["splits"].items()}
    assert counts == {"train": 40, "val": 2, "test": 1}
    assert prepared.manifest.select("test").table["view"].to_pylist() == ["frontal"]


def test_a_fraction_for_an_official_split_is_refused(chexpert_root):
    with pytest.raises(SplitError, match="own test split"):
        prepare(chexpert.read(chexpert_root), test=0.1)


def test_a_patient_in_train_and_valid_is_an_error_that_names_the_rows(chexpert_root):
    with (chexpert_root / "valid.csv").open("a") as table:
        table.write(chexpert_row("CheXpert-v1.0-small/valid/patient00003/study1/view1_frontal.jpg") + "\n")
    write_image(chexpert_root / "valid/patient00003/study1/view1_frontal.jpg")
    with pytest.raises(SplitError, match=r"train\.csv, row 4 \(train\) and valid\.csv, row 4 \(test\)"):
        prepare(chexpert.read(chexpert_root))


def test_the_parent_folder_and_the_batches_of_the_full_release(tmp_path):
    one, two = "patient00001/study1/view1_frontal.jpg", "patient00002/study1/view1_frontal.jpg"
    write_train(
        tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)",
        *(chexpert_row(f"CheXpert-v1.0/train/{p}") for p in (one, two)),
    )
    write_image(tmp_path / "CheXpert-v1.0 batch 2 (train 1)" / one)
    write_image(tmp_path / "CheXpert-v1.0 batch 3 (train 2)" / two)
    prepared = prepare(chexpert.read(tmp_path), val=0.0, test=0.0)
    images = [item["image"] for item in prepared.manifest.items()]
    assert images == [
        str(tmp_path / "CheXpert-v1.0 batch 2 (train 1)" / one),
        str(tmp_path / "CheXpert-v1.0 batch 3 (train 2)" / two),
    ]
    assert all(Path(image).is_file() for image in images)


def test_another_label_space_takes_over_what_it_shares(chexpert_root):
    source = chexpert.read(chexpert_root, label_space="nih-shared")
    assert states(source, "Cardiomegaly") == [0] * 42
    assert states(source, "No Finding")[:2] == [1, -1]
    with pytest.raises(VividError, match="shares no concept"):
        chexpert.read(chexpert_root, label_space="organamnist-11")


def test_missing_tables_and_columns_are_errors(tmp_path):
    with pytest.raises(VividError, match=r"no train\.csv"):
        chexpert.read(tmp_path)
    (tmp_path / "train.csv").write_text("Path,Sex\n")
    with pytest.raises(VividError, match="no column 'No Finding'"):
        chexpert.read(tmp_path)


def test_contradictory_rows_are_kept_and_counted(chexpert_root):
    with (chexpert_root / "train.csv").open("a") as table:
        path = "CheXpert-v1.0-small/train/patient00003/study2/view1_frontal.jpg"
        write_image(chexpert_root / path.split("/", 1)[1])
        table.write(chexpert_row(path, "1.0", "", "1.0", "0.0", "", "1.0") + "\n")
    kept = prepare(chexpert.read(chexpert_root), val=0.3)
    assert kept.card["contradictions"] == {"policy": "keep", "rows": 1, "by_code": {"hierarchy": 1, "no-finding": 1}}
    assert kept.card["rows"] == {"read": 43, "kept": 43, "skipped": 0}
    skipped = prepare(chexpert.read(chexpert_root), val=0.3, on_contradiction="skip")
    assert skipped.skipped["row"].tolist() == [42]
    assert skipped.card["skipped"] == {"contradiction-no-finding": 1}
    with pytest.raises(VividError, match=r"train\.csv, row 42 .*patient00003"):
        prepare(chexpert.read(chexpert_root), val=0.3, on_contradiction="error")


def test_states_read_are_the_tables_own_counts(chexpert_root):
    card = prepare(chexpert.read(chexpert_root), val=0.3).card
    text = [
        line.split(",") for p in ("train.csv", "valid.csv") for line in (chexpert_root / p).read_text().splitlines()[1:]
    ]
    for position, field in enumerate(CHEXPERT_HEADER.split(",")[5:], start=5):
        cells = [row[position] for row in text]
        assert card["states_read"][field] == {
            "null": cells.count(""),
            "absent": cells.count("0.0"),
            "present": cells.count("1.0"),
            "uncertain": cells.count("-1.0"),
        }
    kept = [part[field] for part in card["states"].values()]
    assert sum(part["present"] for part in kept) == card["states_read"][field]["present"]
    assert pc.sum(prepare(chexpert.read(chexpert_root), val=0.3).manifest.table["finding.Cardiomegaly"]).as_py() == 0
