"""From a source to a manifest: what is dropped is listed, what is empty is an error."""

import csv
import hashlib
import json

import pandas as pd
import pytest

from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SplitError, SplitRule
from vivid_monai.errors import VividError
from vivid_monai.prepare.build import prepare
from vivid_monai.prepare.card import to_markdown
from vivid_monai.prepare.source import Rows, Source
from vivid_monai.ums.label_space import load_label_space

FIELDS = load_label_space("chexpert-12").fields


@pytest.fixture
def make(tmp_path):
    """A source of rows given as dicts; what they leave out is filled in."""
    (tmp_path / "t.csv").write_text("a table\n")

    def build(rows: list[dict], *, official=frozenset(), **options) -> Source:
        plain = {
            "#table": "t.csv", "patient_id": "p", "split": None, "view": "PA", "sex": None, "age": None, "dataset": "d",
            "modality": "DX", "anatomy": "chest", "labeller": "l", "source": "human",
            **{f"finding.{field}": -1 for field in FIELDS},
        }  # fmt: skip
        full = [
            {**plain, "#row": i + 2, "#key": f"k{i}", "id": f"id{i}", "image": f"{i}.png", **row}
            for i, row in enumerate(rows)
        ]
        table = pd.DataFrame(full)
        if not rows:
            table = pd.DataFrame({name: [] for name in [*plain, "#row", "#key", "id", "image"]})
        types = {f"finding.{field}": "int8" for field in FIELDS}
        table = table.astype({"age": "float64", "sex": "str", "view": "str", "split": "str", **types})
        return Source(
            dataset="d",
            rows=Rows(table=table, n_read=len(rows)),
            label_space="chexpert-12",
            image_root=tmp_path,
            files=[tmp_path / "t.csv"],
            official=official,
            label_policy="as told",
            **{"contradictions": "skip", "val": 0.0, "test": 0.0, **options},
        )

    return build


def test_the_card_adds_up(make):
    edema = {"finding.Edema": 1}
    rows = [
        edema,
        {**edema, "patient_id": "q", "sex": "F", "age": 40.0, "view": None},
        {"image": "1.png", "patient_id": "q", **edema, "sex": "F", "age": 40.0, "view": None},  # says what row 3 says
        {"finding.Edema": 1, "finding.Lung Opacity": 0},
        {"age": 150.0},
        {"finding.Edema": 0, "finding.Fracture": 2},
    ]
    prepared = prepare(make(rows), check="none", command="vivid prepare …")
    card = prepared.card
    assert card["rows"] == {"read": 6, "kept": 3, "skipped": 3}
    assert card["skipped"] == {"duplicate": 1, "invalid-range": 1, "contradiction-hierarchy": 1}
    assert sum(card["skipped"].values()) == len(prepared.skipped)
    assert card["states_read"]["Edema"] == {"null": 1, "absent": 1, "present": 4, "uncertain": 0}
    assert card["states"]["train"]["Edema"] == {"null": 0, "absent": 1, "present": 2, "uncertain": 0}
    assert card["states"]["train"]["Fracture"]["uncertain"] == 1
    assert card["splits"] == {"train": {"images": 3, "patients": 2}}
    assert (card["views"], card["sexes"]) == (
        {"PA": {"train": 2}, "unknown": {"train": 1}},
        {"F": {"train": 1}, "unknown": {"train": 2}},
    )
    assert card["ages"] == {"known": 1, "min": 40.0, "median": 40.0, "max": 40.0}
    assert "NOT CHECKED" in card["image_check"]
    assert card["sources"] == [{"file": "t.csv", "sha256": hashlib.sha256(b"a table\n").hexdigest(), "rows": 6}]


def test_files_are_written_and_the_card_is_in_the_manifest(make, tmp_path):
    prepared = prepare(make([{}, {"finding.Edema": 1, "finding.Lung Opacity": 0}]), check="none")
    path = prepared.write(tmp_path / "out")
    assert sorted(p.name for p in path.parent.iterdir()) == ["card.json", "card.md", "manifest.parquet", "skipped.csv"]
    (row,) = csv.DictReader((path.parent / "skipped.csv").open())
    assert (row["table"], row["row"], row["key"], row["reason"]) == ("t.csv", "3", "k1", "contradiction-hierarchy")
    assert "'Edema' is present although 'Lung Opacity'" in row["detail"]
    card = json.loads((path.parent / "card.json").read_text())
    assert Manifest.load(path).card == card
    assert card["rows"] == {"read": 2, "kept": 1, "skipped": 1}
    assert "| contradiction-hierarchy |    1 |" in (path.parent / "card.md").read_text()


def test_missing_images_are_listed(make, tmp_path):
    (tmp_path / "1.png").write_bytes(b"x")
    prepared = prepare(make([{}, {}]), check="files")
    assert prepared.manifest.table["id"].to_pylist() == ["id1"]
    assert prepared.card["skipped"] == {"missing-file": 1}


def test_no_rows_left_is_an_error_that_says_why(make):
    with pytest.raises(VividError, match=r"no rows are left of 2 \(missing-file 2\); the first: row 2, .*No such file"):
        prepare(make([{}, {}]), check="files")
    with pytest.raises(VividError, match=r"no rows are left of 0 \(the table holds none\)"):
        prepare(make([]), check="none")


def test_official_splits_are_kept_and_the_rest_is_drawn(make):
    rows = [{"patient_id": f"p{i}", "split": "test" if i < 3 else None} for i in range(40)]
    prepared = prepare(make(rows, official=frozenset({"test"}), val=0.5), check="none")
    splits = prepared.manifest.table["split"].to_pylist()
    assert splits[:3] == ["test"] * 3
    assert splits[3:] == [SplitRule(val=0.5, test=0.0).of(f"p{i}") for i in range(3, 40)]
    assert prepared.manifest.splits == {"official": ["test"], "salt": "vivid-med", "val": 0.5, "test": 0.0}


def test_a_patient_on_two_sides_is_an_error_that_names_the_rows(make):
    official = [{"patient_id": "p7", "split": "test"}, {"patient_id": "p7", "split": "train"}, {"split": None}]
    with pytest.raises(SplitError, match=r"own splits .*: 1 patient.* row 2 \(test\) and .*row 3 \(train\)"):
        prepare(make(official, official=frozenset({"train", "test"})), check="none")
    with pytest.raises(SplitError, match=r"splits .*: 1 patient.* row 2 \(test\) and .*row 3 \(train\)"):
        prepare(make([official[0], {"patient_id": "p7"}], official=frozenset({"test"}), open_is="train"), check="none")


def test_an_empty_split_is_an_error_that_says_so(make):
    with pytest.raises(SplitError, match="split 'val' is empty"):
        prepare(make([{}], val=0.0001), check="none")
    with pytest.raises(SplitError, match="split 'test' is empty"):
        prepare(make([{}], official=frozenset({"test"})), check="none")
    with pytest.raises(SplitError, match="split 'train' is empty"):
        prepare(make([{"patient_id": "p", "split": None}], test=0.999999), check="none")


def test_contradictions_can_be_kept_skipped_or_refused(make):
    rows = [{}, {"finding.Edema": 1, "finding.Lung Opacity": 0}]
    assert len(prepare(make(rows), check="none", on_contradiction="keep").manifest) == 2
    assert len(prepare(make(rows), check="none", on_contradiction="skip").manifest) == 1
    with pytest.raises(VividError, match=r"1 rows contradict themselves; the first: t\.csv, row 3 \(k1\): 'Edema'"):
        prepare(make(rows), check="none", on_contradiction="error")


def test_growth_moves_nobody(make):
    few = [{"patient_id": f"p{i}"} for i in range(30)]
    many = [{"patient_id": f"p{i}"} for i in range(60)]
    small = prepare(make(few, val=0.2, test=0.3), check="none").manifest.table
    large = prepare(make(many, val=0.2, test=0.3), check="none").manifest.table
    assert small["split"].to_pylist() == large["split"].to_pylist()[:30]


def official(n: int, split: str | None, first: int = 0) -> list[dict]:
    return [{"patient_id": f"p{i}", "split": split, "image": f"{split}{i}.png"} for i in range(first, first + n)]


def test_nothing_is_drawn_into_a_split_that_the_data_set_brings(make):
    rows = official(20, "test") + official(60, None, 20)
    for i, row in enumerate(rows):
        row["id"] = f"r{i}"
    prepared = prepare(make(rows, official=frozenset({"test"}), val=0.3, test=0.3), check="none")
    counts = {split: n["images"] for split, n in prepared.card["splits"].items()}
    assert counts["test"] == 20
    assert counts["val"] > 0
    assert prepared.manifest.splits["test"] == 0.0


def test_an_open_row_of_a_held_out_patient_is_left_out_and_one_of_a_train_patient_joins(make):
    rows = [*official(3, "test"), *official(3, "train", 10), {"patient_id": "p1"}, {"patient_id": "p10"}]
    prepared = prepare(make(rows, official=frozenset({"train", "test"}), val=0.0), check="none")
    assert prepared.card["skipped"] == {"official-patient": 1}
    assert prepared.skipped["row"].tolist() == [8]
    assert prepared.manifest.table["split"].to_pylist() == ["test"] * 3 + ["train"] * 4
    # Whatever is drawn: the patients without any official row go to val here, nearly all of them.
    drawn = prepare(
        make([*rows, *official(20, None, 20)], official=frozenset({"train", "test"}), val=0.9), check="none"
    )
    assert drawn.manifest.table["split"].to_pylist()[:7] == ["test"] * 3 + ["train"] * 4
    assert drawn.card["splits"]["val"]["images"] > 10


def test_val_is_drawn_from_official_train_patients_where_asked_and_missed_where_not(make):
    rows = official(40, "train") + official(5, "test", 40)
    both = frozenset({"train", "test"})
    plain = prepare(make(rows, official=both, val=0.5), check="none")
    assert set(plain.card["splits"]) == {"train", "test"}
    assert "No val split: nothing can be trained or evaluated on it; --val draws it" in to_markdown(plain.card)
    drawn = prepare(make(rows, official=both), check="none", val=0.3)
    splits = drawn.manifest.table["split"].to_pylist()
    assert splits[:40] == [SplitRule(val=0.3, test=0.0).of(f"p{i}") for i in range(40)]
    assert splits[40:] == ["test"] * 5
    assert drawn.manifest.splits["official"] == ["test"]
    with pytest.raises(SplitError, match="brings its own test split"):
        prepare(make(rows, official=both), check="none", test=0.1)


def test_losses_count_rows_and_states_but_not_repetitions(make):
    rows = [{"finding.Edema": 1, "finding.Lung Opacity": 1}] * 3 + [{"finding.Edema": 0}] * 96
    rows += [{"image": "0.png", "id": "id0", "finding.Edema": 1, "finding.Lung Opacity": 1}]  # repeats the first row
    fine = prepare(make(rows), check="none")
    assert (fine.card["losses"]["rows"], fine.card["losses"]["over"]) == (0, [])
    rows[0] = {"finding.Edema": 1, "finding.Lung Opacity": 0}
    lost = prepare(make(rows[:99]), check="none")  # one row of 99, but a third of Edema's positives
    assert lost.card["losses"]["over"] == ["1 of 1 absent of Lung Opacity", "1 of 3 present of Edema"]
    assert "| Edema" in (page := to_markdown(lost.card)).split("## Checks")[1]
    assert "LOST: 1 of 3 present of Edema." in page
    rows[3:9] = [{"view": "upside down"}] * 6
    assert prepare(make(rows[:99]), check="none").card["losses"]["over"][0] == "7 of 99 rows"
