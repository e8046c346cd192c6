"""Splits by patient: stable, disjoint, and loud where they are not."""

import pyarrow as pa
import pytest

from vivid_monai.data.splits import SplitError, SplitRule, assert_disjoint

PATIENTS = [f"patient{i:05d}" for i in range(4000)]


def test_assign_gives_every_row_of_a_patient_the_split_of_the_patient():
    rule = SplitRule(val=0.2, test=0.3)
    rows = PATIENTS + PATIENTS[::-1]
    splits = rule.assign(rows).to_pylist()
    assert splits[: len(PATIENTS)] == splits[len(PATIENTS) :][::-1]
    assert splits[:50] == [rule.of(p) for p in PATIENTS[:50]]
    assert_disjoint(pa.array(rows), pa.array(splits), where="rows")


def test_a_patients_split_does_not_depend_on_the_other_rows():
    rule = SplitRule()
    alone = rule.assign(PATIENTS[1000:2000]).to_pylist()
    grown = rule.assign(PATIENTS).to_pylist()
    assert grown[1000:2000] == alone


def test_position_is_pinned():
    # A change of the hash would move patients between the splits of manifests that exist.
    assert SplitRule(salt="vivid-med").position("patient00001") == pytest.approx(0.19146345200730397, abs=1e-15)


def test_fractions_are_kept_and_changing_val_leaves_test_alone():
    small = SplitRule(val=0.1, test=0.2).assign(PATIENTS).to_pylist()
    large = SplitRule(val=0.4, test=0.2).assign(PATIENTS).to_pylist()
    assert abs(small.count("test") / len(PATIENTS) - 0.2) < 0.02
    assert abs(small.count("val") / len(PATIENTS) - 0.1) < 0.02
    assert [s == "test" for s in small] == [s == "test" for s in large]
    assert all(new == "val" for old, new in zip(small, large, strict=True) if old == "val")


def test_another_salt_is_another_draw():
    one = SplitRule(salt="a", test=0.5).assign(PATIENTS).to_pylist()
    two = SplitRule(salt="b", test=0.5).assign(PATIENTS).to_pylist()
    both = sum(a == b == "test" for a, b in zip(one, two, strict=True)) / len(PATIENTS)
    assert abs(both - 0.25) < 0.03


def test_salt_and_patient_do_not_run_into_each_other():
    assert SplitRule(salt="a").position("b1") != SplitRule(salt="ab").position("1")


@pytest.mark.parametrize("fractions", [{"val": -0.1}, {"test": 1.0}, {"val": 0.5, "test": 0.5}, {"val": float("nan")}])
def test_fractions_out_of_range_are_refused(fractions):
    with pytest.raises(SplitError, match="must be in"):
        SplitRule(**fractions)


def test_assert_disjoint_names_rows_and_no_patients():
    patients = pa.array(["Ann", "Bob", "Cid", "Bob", "Ann", "Dan"]).dictionary_encode()
    splits = pa.array(["train", "train", "test", "val", "test", "train"])
    with pytest.raises(SplitError) as said:
        assert_disjoint(patients, splits, where="lists")
    assert str(said.value) == (
        "lists: 2 patient(s) are in more than one split, as in "
        "row 1 (train) and row 5 (test); row 2 (train) and row 4 (val)"
    )
    with pytest.raises(SplitError, match=r"as in 20 \(train\) and 60 \(test\); 30 \(train\) and 50 \(val\)$"):
        assert_disjoint(patients, splits, where="lists", row=[20, 30, 40, 50, 60, 70].__getitem__)


def test_a_missing_patient_id_cannot_be_split():
    with pytest.raises(SplitError, match="1 row"):
        SplitRule().assign(pa.array(["a", None]))
