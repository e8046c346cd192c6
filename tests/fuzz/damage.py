"""Files and JSON as accidents, and people, leave them."""

import copy
import random
from collections.abc import Iterator
from typing import Any

from tests.deploy.mutate import mutations

ODD: list[Any] = [None, True, 0, -1, 3, 2**63, 1e308, float("nan"), float("inf"), "", " ", "\0", "a\nb", "\ud800", "é"]
ODD += ["x" * 400, [], [[]], {}, {"a": 1}, 10**400]


def damaged(content: bytes, choose: random.Random) -> bytes:
    """The content cut short, with bits turned, or with a stretch overwritten."""
    kind = choose.randrange(4)
    return [*mutations(content, kind + 1, seed=choose.randrange(2**32))][kind]


def changed(data: Any, choose: random.Random) -> Any:
    """A copy of JSON data with something taken away, replaced, renamed or added in a place or two."""
    data = copy.deepcopy(data)
    for _ in range(choose.choice([1, 1, 2])):
        places = [place for place in _containers(data) if place]
        if not places:
            return copy.deepcopy(choose.choice(ODD))
        place = choose.choice(places)
        key = choose.choice(list(place) if isinstance(place, dict) else range(len(place)))
        way = choose.choice(["take away", "replace", "replace", "rename", "add"])
        if way == "take away":
            del place[key]
        elif way == "replace":
            place[key] = copy.deepcopy(choose.choice([*ODD, *_others(place)]))
        elif isinstance(place, list):
            place.insert(key, copy.deepcopy(choose.choice([*ODD, place[key]])))
        elif way == "rename":
            place[f"{key}s"] = place.pop(key)
        else:
            place[choose.choice(["odd", "", "x" * 400, "a\nb"])] = copy.deepcopy(choose.choice(ODD))
    return data


def _others(place: Any) -> list[Any]:
    """Values that stand beside each other."""
    return [*place.values()] if isinstance(place, dict) else [*place]


def _containers(data: Any) -> Iterator[Any]:
    if isinstance(data, dict | list):
        yield data
        for value in data.values() if isinstance(data, dict) else data:
            yield from _containers(value)


def one_line(told: object, *, beside: str = "", secrets: tuple[str, ...] = ()) -> None:
    """A message is one line of at most 300 characters, the folder of the check apart, and tells no secret."""
    text = str(told)
    assert text.strip(), "nothing is said"
    assert len(text.splitlines()) == 1, repr(text)
    assert len(text.replace(beside, "") if beside else text) <= 300, text
    for secret in secrets:
        assert secret not in text, text
