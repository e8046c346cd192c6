"""The states a finding can have, and their codes in arrays."""

from typing import Final

from vivid_monai.errors import VividError

STATES: Final = ("absent", "present", "uncertain")
"""The answerable states; the index of a state is its code: absent 0, present 1, uncertain 2."""

ABSENT, PRESENT, UNCERTAIN = 0, 1, 2
NULL: Final = -1
"""Code of JSON ``null``: the labels there are do not answer the question. It never means "absent"."""


def encode(state: str | None) -> int:
    """Return the code of a state (``None`` → −1). Raises VividError on a word that is no state."""
    if state is None:
        return NULL
    if state not in STATES:
        raise VividError(f"{state!r} is not a state: use one of {', '.join(STATES)}, or null where unanswerable")
    return STATES.index(state)


def decode(code: int) -> str | None:
    """Return the state of a code (−1 → ``None``). Raises VividError on a number that codes no state."""
    if code == NULL:
        return None
    if code not in (ABSENT, PRESENT, UNCERTAIN):
        raise VividError(f"{code!r} codes no state: use {NULL} (unanswerable), {ABSENT}, {PRESENT} or {UNCERTAIN}")
    return STATES[int(code)]
