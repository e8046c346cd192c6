"""The card's tables and counts."""

import pandas as pd

from vivid_monai.prepare.card import _table, count_states, count_words, too_few


def test_states_are_counted_with_their_nulls():
    table = pd.DataFrame({"finding.a": [-1, 0, 0, 2, 1, 1, 1], "finding.b": [-1] * 7}, dtype="int8")
    assert count_states(table, ["a", "b"]) == {
        "a": {"null": 1, "absent": 2, "present": 3, "uncertain": 1},
        "b": {"null": 7, "absent": 0, "present": 0, "uncertain": 0},
    }


def test_words_are_counted_by_split_with_unknowns():
    table = pd.DataFrame({"split": ["train", "train", "test", "test"], "view": ["PA", None, "PA", "PA"]})
    assert count_words(table, "view") == {"PA": {"train": 1, "test": 2}, "unknown": {"train": 1, "test": 0}}


def test_tables_are_aligned_markdown():
    assert _table(("field", "n"), [("a", 1234), ("long", 5)]).splitlines() == [
        "| field |     n |",
        "|-------|------:|",
        "| a     | 1,234 |",
        "| long  |     5 |",
    ]


def test_a_field_with_labels_but_few_of_a_state_in_val_or_test_is_told():
    def counts(present: int, absent: int) -> dict[str, int]:
        return {"null": 0, "absent": absent, "present": present, "uncertain": 0}

    states = {
        "train": {"enough": counts(50, 50), "rare": counts(3, 500), "nowhere": counts(0, 0)},
        "val": {"enough": counts(10, 10), "rare": counts(0, 90), "nowhere": counts(0, 0)},
        "test": {"enough": counts(10, 10), "rare": counts(10, 9), "nowhere": counts(0, 0)},
    }
    assert too_few(states) == ["rare (val 0 present, test 9 absent)"]
    assert too_few({"train": states["train"]}) == []
