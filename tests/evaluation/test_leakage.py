"""The traps for what a probe has seen before."""

from itertools import permutations

import numpy as np
import pytest

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.task import check_leakage


def side(name: str, n: int = 5) -> Features:
    patients, ids = (np.array([f"{name}-{what}{i}" for i in range(n)]) for what in ("p", "i"))
    return Features(np.zeros((n, 2), np.float32), np.zeros((n, 1), np.int64), patients, ids)


def test_disjoint_sides_pass():
    check_leakage(side("a"), side("b"), side("c"))


@pytest.mark.parametrize(("first", "second"), [p for p in permutations(range(3), 2) if p[0] < p[1]])
@pytest.mark.parametrize("what", ["patients", "ids"])
def test_any_pair_of_sides_is_looked_at(first, second, what):
    sides = [side("a"), side("b"), side("c")]
    getattr(sides[second], what)[[1, 3]] = getattr(sides[first], what)[:2]
    shared = getattr(sides[first], what)[0]
    names = ("training", "validation", "test")
    kind = {"patients": "patients", "ids": "images"}[what]
    with pytest.raises(
        VividError, match=f"2 {kind} on both sides of the probe's {names[first]} and {names[second]}.*{shared}"
    ):
        check_leakage(*sides)


def test_many_are_counted_and_three_named():
    train, test = side("a", 9), side("a", 9)
    with pytest.raises(VividError, match=r"9 images.*a-i0, a-i1, a-i2 and 6 more"):
        check_leakage(train, side("b"), test)
