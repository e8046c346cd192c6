"""What DCMTK's converter shows of the same made files."""

import random

import pytest

from tests.fuzz import dicoms

pytestmark = [
    pytest.mark.dcmtk,
    pytest.mark.skipif(not dicoms.AT_HAND, reason="DCMTK's dcmj2pnm is not installed"),
]


@pytest.mark.parametrize("seed", range(80))
def test_a_drawn_file_looks_as_dcmtk_shows_it_or_is_refused(seed: int) -> None:
    dicoms.check(random.Random(seed))
