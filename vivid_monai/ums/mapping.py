"""Several label spaces: states of one in the words of another, and the union of their fields."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace, normalise
from vivid_monai.ums.states import ABSENT, NULL, PRESENT


def shared_states(states: NDArray[np.integer], source: LabelSpace, target: LabelSpace) -> NDArray[np.integer]:
    """Return states (N, F of ``source``) as states (N, F of ``target``) of the same dtype, by ``mapping_to``.

    A field of the target that the source has no field for is null. The target's "no finding" is found thus:

    * the source has such a field too: its state, and absent where that is null but another field, other than those that
      may stand beside it, is present;
    * the source lists what it found and means the rest to be absent (it has a ``none_label``): present where every
      field is absent, absent where one is present, null otherwise;
    * else null.
    """
    out = np.full((len(states), len(target.fields)), NULL, dtype=states.dtype)
    for ours, theirs in source.mapping_to(target).items():
        out[:, target.fields.index(theirs)] = states[:, source.fields.index(ours)]
    if target.no_finding is None:
        return out

    column = out[:, target.fields.index(target.no_finding)]
    beside = {source.no_finding, *source.no_finding_compatible}
    findings = states[:, [i for i, field in enumerate(source.fields) if field not in beside]]
    if source.no_finding is not None or source.none_label is not None:
        column[(column == NULL) & (findings == PRESENT).any(axis=1)] = ABSENT
    if source.no_finding is None and source.none_label is not None:
        column[(findings == ABSENT).all(axis=1)] = PRESENT
    return out


def shared_fields(source: LabelSpace, target: LabelSpace) -> set[str]:
    """The fields of the target that :func:`shared_states` can fill."""
    mapped = set(source.mapping_to(target).values())
    known = source.no_finding is not None or source.none_label is not None
    return mapped | ({target.no_finding} if known and target.no_finding else set())


def union_space(spaces: Sequence[LabelSpace]) -> dict[str, Any]:
    """Return the content of a label space that has every field of these spaces, each meaning once.

    A field has the name, the label, the parent, the side and the rating of the first space that gives it one, and
    stands where that space has it; what other spaces call it are aliases, unless they are ambiguous. What may stand
    beside "no finding" in one space may do so here. Fields exclude each other in no union: those of two data sets
    never did.

    Raises VividError where two spaces give one name to different meanings, or different sides to one meaning.
    """
    entries: dict[str, dict[str, Any]] = {}
    owners: dict[str, tuple[str, str]] = {}
    aliases: dict[str, list[str]] = {}
    no_finding, beside = None, list[str]()
    for space in spaces:
        for field, label in zip(space.fields, space.labels, strict=True):
            meaning = space.meaning(field)
            for word in (field, label):
                owner, where = owners.setdefault(normalise(word), (meaning, f"{word!r} of {space.name!r}"))
                if owner != meaning:
                    raise VividError(
                        f"{word!r} of {space.name!r} ({meaning}) and {where} ({owner}) have one name and different "
                        "meanings: give both fields the same concept in their label spaces, or one another name"
                    )
            entry = entries.setdefault(meaning, {"name": field, "label": label})
            if (side := space.sides.get(field)) is not None and entry.get("side", side) != side:
                raise VividError(
                    f"{field!r} of {space.name!r} has the side {side!r}, {entry['name']!r} of another label space "
                    f"{entry['side']!r}: correct one of them"
                )
            rating, parent = space.ratings.get(field), space.parents.get(field)
            more = {
                "side": side,
                "concept": space.concepts.get(field),
                "rating": rating and rating._asdict(),
                "parent": parent and space.meaning(parent),
            }
            for key, value in more.items():
                if value is not None:
                    entry.setdefault(key, value)
            aliases.setdefault(meaning, []).extend((field, label, *space.aliases[field]))
        if space.no_finding is not None:
            no_finding = no_finding or space.meaning(space.no_finding)
            beside += [space.meaning(field) for field in space.fields if field in space.no_finding_compatible]
    for meaning, entry in entries.items():
        if "parent" in entry:
            entry["parent"] = entries[entry["parent"]]["name"]
        entry["aliases"] = _unambiguous(meaning, aliases, known={entry["name"], entry["label"]})
    names = list(dict.fromkeys(space.name for space in spaces))
    content: dict[str, Any] = {
        "label_space_version": "1.0",
        "name": "-and-".join(names),
        "description": f"Every field of {', '.join(names)}, once.",
        "source": "; ".join(dict.fromkeys(space.source for space in spaces)),
        "fields": list(entries.values()),
    }
    if no_finding is not None:
        compatible = [entries[meaning]["name"] for meaning in dict.fromkeys(beside)]
        content["no_finding"] = {"field": entries[no_finding]["name"], "compatible": compatible}
    return content


def _unambiguous(meaning: str, aliases: dict[str, list[str]], *, known: set[str]) -> list[str]:
    """Other words for a meaning than the known ones; none of them means something else in any label space."""
    foreign = {normalise(word) for other, words in aliases.items() if other != meaning for word in words}
    own = {normalise(word): word for word in reversed(aliases[meaning])}  # of words that are alike, the first
    taken = foreign | {normalise(word) for word in known}
    return [word for key, word in reversed(own.items()) if key not in taken]
