"""What a request asks for, looked at before MONAI Label takes it for granted."""

import json
from collections.abc import Collection
from typing import Any

from fastapi import HTTPException


def quoted(value: Any) -> str:
    """What was asked for, as a message can hold it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def check(request: dict[str, Any], what: str, known: Collection[str]) -> None:
    """A field of a request's body takes the place of the name in its address, and may be anything that JSON can say.

    Raises:
        HTTPException: 404, there is none of that name; 422, what cannot be written.
    """
    if request.get(what) not in list(known):  # a list: what is asked for need not be hashable
        raise HTTPException(404, f"there is no {what} {quoted(request.get(what))}; there is {', '.join(known)}")
    check_text(request)


def check_text(said: Any) -> None:
    """A body can say half of a surrogate pair, NaN or Infinity; once MONAI Label's index holds one, it can be sent to
    nobody any more.

    Raises:
        HTTPException: 422, there is one in it.
    """
    try:
        json.dumps(said, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise HTTPException(422, f"no JSON: {error}") from error
