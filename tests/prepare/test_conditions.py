"""Harder conditions of a data set: what changes is what was asked for, and no test row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.data.test_union import made
from vivid_monai.cli import main
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.targets import FieldSampler
from vivid_monai.data.union import load_manifest
from vivid_monai.errors import VividError
from vivid_monai.prepare.conditions import Conditions, harder, prepare, told_of
from vivid_monai.ums.states import ABSENT, NULL, PRESENT, UNCERTAIN

N = 2000  # images, two of each patient: train, train, val, test, patient by patient
EDEMA = ["Edema"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Manifest:
    """Random states; every row with a report and a mask, and a study for each patient."""
    folder = tmp_path_factory.mktemp("base")
    study = {"study_id": [f"s{i // 2}" for i in range(N)]}
    telling = {"report": ["Edema."] * N, "mask": ["m.png"] * N}
    made("phantom", "chexpert-12", N, **study, **telling).save(folder / "manifest.parquet")
    return Manifest.load(folder / "manifest.parquet")


def rows(manifest: Manifest, split: str) -> pa.Table:
    return manifest.select(split).table


def states(manifest: Manifest, split: str) -> np.ndarray:
    return manifest.select(split).states()


@pytest.mark.parametrize(
    "asked",
    [
        {"labels": 0.1},
        {"rare": {"Edema": 0.1}},
        {"noise": 0.3},
        {"missing": 0.5},
        {"hide": ("Edema",)},
        {"assume_absent": True},
        {"shuffle": True},
        {"labels": 0.3, "rare": {"Edema": 0.2}, "noise": 0.1, "missing": 0.3, "hide": ("Edema",), "shuffle": True},
    ],
    ids=str,
)
def test_test_rows_stay_patients_are_whole_and_images_where_they_are(base, asked):
    hard = harder(base, Conditions(**asked))
    assert rows(hard, "test").to_pylist() == rows(base, "test").to_pylist()
    assert hard.image_root == base.image_root
    counts = np.unique(hard.patients(), return_counts=True)[1]
    assert set(counts) == {2}
    assert len(hard) < len(base) or not np.array_equal(hard.states(), base.states())
    again = harder(base, Conditions(**asked))
    assert again.table.equals(hard.table)
    other = harder(base, Conditions(**asked, seed=1))
    assert other.table.equals(hard.table) == (set(asked) <= {"hide", "assume_absent"})


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_few_labels_are_a_share_of_the_training_patients_and_nested(base, share):
    kept = set(harder(base, Conditions(labels=share)).select("train").patients())
    assert len(kept) == round(share * 500)
    assert kept < set(harder(base, Conditions(labels=2 * share)).select("train").patients())
    assert rows(harder(base, Conditions(labels=share)), "val").equals(rows(base, "val"))


def test_noise_interchanges_present_and_absent_for_a_whole_study(base):
    hard = harder(base, Conditions(noise=0.2))
    for split in ("train", "val"):
        before, after = states(base, split), states(hard, split)
        flipped = before != after
        assert set(zip(before[flipped], after[flipped], strict=True)) == {(PRESENT, ABSENT), (ABSENT, PRESENT)}
        known = (before == PRESENT) | (before == ABSENT)
        assert flipped[known].mean() == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / (known.sum() / 2)) ** 0.5)
        first, second = flipped[::2], flipped[1::2]
        both = known[::2] & known[1::2]
        assert np.array_equal(first[both], second[both])


def test_missing_states_are_null_and_may_be_taken_for_absent(base):
    hard, wrong = (harder(base, Conditions(missing=0.4, assume_absent=one)) for one in (False, True))
    for split in ("train", "val"):
        before, after, assumed = states(base, split), states(hard, split), states(wrong, split)
        lost = before != after
        assert set(after[lost]) == {NULL}
        assert lost[before != NULL].mean() == pytest.approx(0.4, abs=0.03)
        assert np.array_equal(assumed, np.where(after == NULL, ABSENT, after))
        both = (before[::2] != NULL) & (before[1::2] != NULL)
        assert np.array_equal(lost[::2][both], lost[1::2][both])


def test_a_rare_finding_is_in_fewer_patients_and_all_others_stay(base):
    hard = harder(base, Conditions(rare={"Pulmonary Edema": 0.1}))
    for split in ("train", "val"):
        present = base.select(split).states(EDEMA)[:, 0] == PRESENT
        before = set(base.select(split).patients()[present])
        after = set(hard.select(split).patients()[hard.select(split).states(EDEMA)[:, 0] == PRESENT])
        assert len(after) == round(0.1 * len(before))
        assert set(base.select(split).patients()) - set(hard.select(split).patients()) == before - after


def test_a_hidden_field_is_never_asked_and_validation_keeps_it(base):
    hard = harder(base, Conditions(hide=("Effusion",), assume_absent=True))
    place = base.fields.index("Pleural Effusion")
    assert set(states(hard, "train")[:, place]) == {NULL}
    assert UNCERTAIN in states(hard, "val")[:, place]
    sampler, rng = FieldSampler(base.fields), np.random.default_rng(0)
    asked = np.array([sampler(one, rng) for one in states(hard, "train")])
    assert not asked[:, place].any()
    assert asked[:, place - 1].any()


def test_shuffled_labels_are_those_of_other_patients(base):
    hard = harder(base, Conditions(shuffle=True))
    before, after = states(base, "train"), states(hard, "train")
    assert sorted(map(tuple, before)) == sorted(map(tuple, after))
    agree = (before == after).mean()
    assert agree == pytest.approx(0.25, abs=0.03)  # four states, drawn alike
    assert np.array_equal(states(hard, "val"), states(base, "val"))


def test_what_would_tell_the_old_state_is_taken_out(base):
    hard = harder(base, Conditions(noise=0.02))
    changed = (base.states() != hard.states()).any(axis=1)
    assert 0 < changed.sum() < len(base) / 2
    for column in ("report", "mask"):
        assert [word is None for word in hard.table[column].to_pylist()] == changed.tolist()


def test_draws_do_not_depend_on_what_else_is_asked(base):
    plain = harder(base, Conditions(noise=0.2))
    fewer = harder(base, Conditions(noise=0.2, labels=0.2, hide=("Edema",)))
    kept = np.isin(plain.table["id"].to_pylist(), fewer.table["id"].to_pylist())
    others = [field for field in base.fields if field != "Edema"]
    assert np.array_equal(plain.states(others)[kept], fewer.states(others))
    before, after = states(base, "train"), states(harder(base, Conditions(noise=0.3, missing=0.3)), "train")
    left = ((before == PRESENT) | (before == ABSENT)) & (after != NULL)
    assert (before != after)[left].mean() == pytest.approx(0.3, abs=0.04)


def test_two_halves_of_the_questions_make_a_union(base, tmp_path):
    """Two hospitals that answer other questions: the union asks all, and each gives no gradient for the other's."""
    halves = {"a": base.fields[6:], "b": base.fields[:6]}
    for name, hidden in halves.items():
        prepare(Path(base.folder), tmp_path / name, Conditions(hide=hidden, name=name))
    whole = load_manifest([tmp_path / name / "manifest.parquet" for name in halves])
    assert (whole.label_space, len(whole)) == (base.label_space, 2 * N)
    train = whole.select("train")
    for name, hidden in halves.items():
        own = train.states(hidden)[train.datasets() == name]
        assert (own == NULL).all()
        assert (train.states(hidden)[train.datasets() != name] != NULL).any()
    assert {item["image"] for item in whole.items()} == {item["image"] for item in base.items()}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"labels": 0}, "labels 0: the share"),
        ({"rare": {"Edema": 1.5}}, "Edema 1.5: the share"),
        ({"noise": 0.6}, "noise 0.6"),
        ({"missing": 1}, "missing 1"),
        ({"seed": -1}, "seed -1"),
        ({"hide": ("Edemma",)}, "did you mean 'Edema'"),
        ({"labels": 0.001, "missing": 0.99}, r"nothing to learn is left: 2 training images of 1 patients"),
        ({"labels": 0.001, "shuffle": True}, "a patient has over half of the training images"),
    ],
)
def test_what_cannot_be_is_one_line(base, asked, told):
    with pytest.raises(VividError, match=told):
        harder(base, Conditions(**asked))


def test_the_command_tells_what_became_of_the_labels_and_keeps_the_settings(base, tmp_path, capsys):
    out = tmp_path / "hard"
    command = ["prepare", "conditions", str(base.folder), "--labels", "0.1", "--rare", "Edema=0.5", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "(1,000 of 500)" in said
    assert f"vivid compare {out}" in said
    made = Manifest.load(out / "manifest.parquet")
    assert made.sources[:-1] == base.sources
    assert {key: made.sources[-1][key] for key in ("labels", "rare", "seed")} == {
        "labels": 0.1,
        "rare": {"Edema": 0.5},
        "seed": 0,
    }
    assert told_of(made) == "labels=0.1, rare=Edema 0.5, seed=0"
    assert made.splits == base.splits
    before = (out / "manifest.parquet").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "manifest.parquet").stat().st_mtime_ns == before
    assert main([*command, "--seed", "1"]) == 2
    assert "holds labels=0.1, rare=Edema 0.5, seed=0, not this condition" in capsys.readouterr().err
    assert main(["prepare", "conditions", str(base.folder), "--noise", "0.1", "--out", str(base.folder)]) == 2
    assert "holds another data set" in capsys.readouterr().err
    assert main([*command, "--rare", "Edema"]) == 2
    assert "--rare Edema: write FIELD=SHARE" in capsys.readouterr().err
