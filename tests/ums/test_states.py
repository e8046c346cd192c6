"""States and their codes."""

import pytest

from vivid_monai.errors import VividError
from vivid_monai.ums.states import NULL, STATES, decode, encode


def test_codes_are_fixed_and_round_trip():
    assert {state: encode(state) for state in (*STATES, None)} == {"absent": 0, "present": 1, "uncertain": 2, None: -1}
    assert NULL == -1
    assert [decode(encode(state)) for state in (*STATES, None)] == [*STATES, None]


@pytest.mark.parametrize("word", ["null", "Present", "", "positive"])
def test_other_words_are_refused(word):
    with pytest.raises(VividError, match="is not a state: use one of absent, present, uncertain"):
        encode(word)


@pytest.mark.parametrize("code", [-2, 3, 0.5])
def test_other_codes_are_refused(code):
    with pytest.raises(VividError, match=f"{code} codes no state"):
        decode(code)
