"""A word that is there twice is found, however its hash falls."""

import pyarrow as pa
import pytest

from vivid_monai.data import manifest as checks
from vivid_monai.data.manifest import repeated

MANY = [f"id{n}" for n in range(70_000)]  # more than are hashed at once


@pytest.mark.parametrize("hashes", ["of Python", "all the same"])
def test_the_first_word_that_comes_again_is_found(monkeypatch, hashes):
    if hashes == "all the same":
        monkeypatch.setattr(checks, "hash", lambda word: 7, raising=False)
    assert repeated(pa.chunked_array([MANY[:5], MANY[5:]])) is None
    assert repeated(pa.chunked_array([MANY[:3], MANY[3:], ["id69999"], ["id1"]])) == "id1"
    assert repeated(pa.chunked_array([MANY, ["id69999"]])) == "id69999"
    assert repeated(pa.chunked_array([["a"], ["a"], ["a"]])) == "a"
    assert repeated(pa.chunked_array([["a"]])) is None
