"""Field sampling: how many, how often a rare one, never an unanswerable one."""

from typing import Any

import numpy as np
import pytest

from vivid_monai.data.targets import RARE_FIELDS, FieldSampler
from vivid_monai.errors import VividError

FIELDS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Fracture",
    "Support Devices",
)
ALL = np.arange(12) % 3


def draws(sampler: FieldSampler, states: np.ndarray, n: int = 2000) -> np.ndarray:
    return np.stack([sampler(states, np.random.default_rng([0, i])) for i in range(n)])


def test_four_to_six_fields_are_asked_evenly() -> None:
    asked = draws(FieldSampler(FIELDS), ALL)
    assert asked.dtype == bool
    counts = np.bincount(asked.sum(1), minlength=13)
    assert counts[:4].sum() == counts[7:].sum() == 0
    assert np.abs(counts[4:7] / 2000 - 1 / 3).max() < 0.04


@pytest.mark.parametrize("p_rare", [0.0, 0.6, 1.0])
def test_one_field_is_rare_with_the_probability_asked_for(p_rare: float) -> None:
    rare = np.isin(FIELDS, RARE_FIELDS[:1])
    states = np.where(np.isin(FIELDS, RARE_FIELDS[1:]), -1, ALL)  # Fracture is the only rare one of 8 answerable
    share = draws(FieldSampler(FIELDS, n=(4, 4), p_rare=p_rare), states)[:, rare].mean()
    assert abs(share - (p_rare + (1 - p_rare) * 4 / 8)) < 0.04


def test_all_rare_fields_are_drawn_alike() -> None:
    asked = draws(FieldSampler(FIELDS, n=(1, 1), p_rare=1), ALL)
    counts = asked.sum(0) / 2000
    rare = np.isin(FIELDS, RARE_FIELDS)
    assert not counts[~rare].any()
    assert np.abs(counts[rare] - 1 / 5).max() < 0.04


def test_unanswerable_fields_are_never_asked() -> None:
    states = np.where(np.arange(12) < 9, ALL, -1)
    asked = draws(FieldSampler(FIELDS), states, 300)
    assert not asked[:, 9:].any()
    assert asked[:, :9].any(0).all()
    assert set(asked.sum(1)) == {4, 5, 6}


@pytest.mark.parametrize("answerable", [0, 1, 3, 4])
def test_where_few_are_answerable_all_of_them_are_asked(answerable: int) -> None:
    states = np.where(np.arange(12) < answerable, ALL, -1)
    assert (draws(FieldSampler(FIELDS), states, 50) == (states >= 0)).all()


@pytest.mark.parametrize(("n", "counts"), [(("all", 6), {9}), (["all", "all"], {9}), ((7, "all"), {7, 8, 9})])
def test_all_asks_all_that_are_answerable(n: Any, counts: set[int]) -> None:
    states = np.where(np.arange(12) < 9, ALL, -1)
    assert set(draws(FieldSampler(FIELDS, n=n), states, 100).sum(1)) == counts


def test_the_generator_is_the_only_source_of_randomness() -> None:
    sampler = FieldSampler(FIELDS)
    assert np.array_equal(draws(sampler, ALL, 20), draws(sampler, ALL, 20))
    assert len({tuple(row) for row in draws(sampler, ALL, 20)}) > 10


@pytest.mark.parametrize("wrong", [{"n": (0, 4)}, {"n": (5, 4)}, {"n": (4,)}, {"n": (4, "few")}, {"p_rare": 1.1}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(VividError, match=f"{next(iter(wrong))} must be"):
        FieldSampler(FIELDS, **wrong)


def test_a_rare_field_of_another_label_space_is_refused_by_name() -> None:
    with pytest.raises(VividError, match=r"\['Fracture', .*\] are not among the fields \['Edema', 'Mass'\]; set rare"):
        FieldSampler(["Edema", "Mass"])
    assert FieldSampler(["Edema", "Mass"], rare=[]).fields == ("Edema", "Mass")
