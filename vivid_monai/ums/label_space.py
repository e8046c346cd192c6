"""Label spaces: fields in order, their other names, hierarchy, sides and shared concepts."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from vivid_monai.errors import VividError
from vivid_monai.ums.schema import parse_json, schema_violations

NO_FINDING = "no-finding"
"""The concept of a field that says "nothing found"."""

_FILES = resources.files("vivid_monai.ums") / "label_spaces"


def normalise(label: str) -> str:
    """Return a label as it is compared: lower case, every run of other than letters and digits as one space."""
    return re.sub(r"[\W_]+", " ", label).strip().casefold()


def side_in(text: str) -> str | None:
    """Return the side that a text names: "left", "right", "bilateral" where it names both, else ``None``."""
    words = set(normalise(text).split())
    if words & {"bilateral", "both"} or {"left", "right"} <= words:
        return "bilateral"
    return next((side for side in ("left", "right") if side in words), None)


class Rating(NamedTuple):
    """An ordinal scale behind a field: ratings up to ``absent_at_most`` mean absent, from ``present_at_least``
    present, and those between uncertain."""

    minimum: float
    maximum: float
    absent_at_most: float
    present_at_least: float

    def state(self, value: float) -> str:
        """Return the state of a rating. Raises VividError outside the scale."""
        if not self.minimum <= value <= self.maximum:
            raise VividError(f"rating {value!r} is outside the scale {self.minimum:g} to {self.maximum:g}")
        if value <= self.absent_at_most:
            return "absent"
        return "present" if value >= self.present_at_least else "uncertain"


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """A label space, read from its data file by `load_label_space`.

    ``fields`` are the canonical names in order, ``labels`` the words for people and language models in the same order.
    ``parents`` maps a child to its parent, ``sides`` a field to the side its name or anatomy fixes ("left", "right",
    "bilateral", "midline"). ``exclusive``: at most one field is present. ``no_finding`` is the field that says
    "nothing found" and ``no_finding_compatible`` what may stand beside it. ``none_label`` is a word that tables of
    this space use for "every field absent" without its being a field. ``ratings`` maps a field to its ordinal scale,
    ``concepts`` a field to the meaning it shares with fields of other spaces; that of ``no_finding`` is "no-finding"
    where the file names none.
    """

    name: str
    description: str
    source: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    aliases: Mapping[str, tuple[str, ...]]
    parents: Mapping[str, str]
    sides: Mapping[str, str]
    exclusive: bool
    no_finding: str | None
    no_finding_compatible: frozenset[str]
    none_label: str | None
    ratings: Mapping[str, Rating]
    concepts: Mapping[str, str]
    lookup: Mapping[str, str]
    """Normalised name, label or alias → field."""

    @property
    def sided(self) -> bool:
        """Whether a field has a left or right in it, so that mirroring an image would make its labels wrong."""
        return any(side in ("left", "right") for side in self.sides.values())

    def resolve(self, label: str) -> str:
        """Return the field that a name, label or alias means; case and punctuation do not matter.

        Raises VividError that names the unknown label and the nearest known ones.
        """
        if (field := self.lookup.get(normalise(label))) is not None:
            return field
        near = dict.fromkeys(repr(self.lookup[n]) for n in difflib.get_close_matches(normalise(label), self.lookup))
        hint = f"did you mean {' or '.join(near)}?" if near else f"its fields are {', '.join(self.fields)}"
        raise VividError(f"label {label!r} is not in label space {self.name!r}; {hint}")

    def ancestors(self, field: str) -> tuple[str, ...]:
        """Return the fields above a field, nearest first."""
        chain: list[str] = []
        while (parent := self.parents.get(chain[-1] if chain else field)) is not None:
            chain.append(parent)
        return tuple(chain)

    def meaning(self, field: str) -> str:
        """Return what tells a field from those of other spaces: its concept, or its name (in quotes) without one."""
        return self.concepts.get(field) or repr(normalise(field))

    def mapping_to(self, other: "LabelSpace") -> dict[str, str]:
        """Return field → field of the other space that means the same, in this space's order; one to one.

        Fields mean the same where they have the same concept, or neither has one and they have the same name.
        """
        theirs = {other.meaning(field): field for field in other.fields}
        return {field: theirs[same] for field in self.fields if (same := self.meaning(field)) in theirs}


def available_label_spaces() -> tuple[str, ...]:
    """Return the names of the label spaces in the package, sorted."""
    return tuple(sorted(f.name.removesuffix(".json") for f in _FILES.iterdir() if f.name.endswith(".json")))


def load_label_space(name_or_path: str | Path) -> LabelSpace:
    """Return a label space of the package by its name, or one of your own by the path of its JSON file.

    Raises VividError where there is none of that name or the file is not a valid label space.
    """
    if isinstance(name_or_path, str) and name_or_path in available_label_spaces():
        return _packaged(name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        names = ", ".join(available_label_spaces())
        raise VividError(f"no label space {str(name_or_path)!r}: give one of {names}, or the path of a JSON file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VividError(f"{path}: cannot be read as text ({error}); a label space is a JSON file in UTF-8") from error
    return parse_label_space(text, where=str(path))


@cache
def _packaged(name: str) -> LabelSpace:
    return parse_label_space((_FILES / f"{name}.json").read_text(encoding="utf-8"), where=f"label space {name}")


def parse_label_space(text: str, *, where: str = "label space") -> LabelSpace:
    """Build a label space from the text of its file; ``where`` names the file in errors (VividError)."""
    data = parse_json(text, where=where)
    if violations := schema_violations(data, schema="label-space-1.0"):
        raise VividError(f"{where}: at {violations[0].pointer or 'the top'}: {violations[0].message}")
    entries: list[dict[str, Any]] = data["fields"]
    no_finding = data.get("no_finding", {})

    def given(key: str) -> dict[str, Any]:
        return {entry["name"]: entry[key] for entry in entries if key in entry}

    lookup: dict[str, str] = {}
    for entry in entries:
        for label in (entry["name"], entry.get("label", entry["name"]), *entry.get("aliases", ())):
            if lookup.setdefault(normalise(label), entry["name"]) != entry["name"]:
                raise VividError(f"{where}: {label!r} names both {lookup[normalise(label)]!r} and {entry['name']!r}")
    concepts = {
        e["name"]: e.get("concept", NO_FINDING if e["name"] == no_finding.get("field") else None) for e in entries
    }
    space = LabelSpace(
        name=data["name"],
        description=data["description"],
        source=data["source"],
        fields=tuple(entry["name"] for entry in entries),
        labels=tuple(entry.get("label", entry["name"]) for entry in entries),
        aliases={entry["name"]: tuple(entry.get("aliases", ())) for entry in entries},
        parents=given("parent"),
        sides={e["name"]: side for e in entries if (side := e.get("side") or side_in(e["name"]))},
        exclusive=data.get("exclusive", False),
        no_finding=no_finding.get("field"),
        no_finding_compatible=frozenset(no_finding.get("compatible", ())),
        none_label=data.get("none_label"),
        ratings={name: Rating(**rating) for name, rating in given("rating").items()},
        concepts={name: concept for name, concept in concepts.items() if concept is not None},
        lookup=lookup,
    )
    for problem in _problems(space):
        raise VividError(f"{where}: {problem}")
    return space


def _problems(space: LabelSpace) -> Iterator[str]:
    """Where the parts of a label space do not fit each other."""
    for field in space.fields:
        if space.fields.count(field) > 1:
            yield f"field {field!r} is there twice"
        if not normalise(field):
            yield f"field {field!r} has no letter or digit"
        if (named_side := side_in(field)) not in (None, space.sides.get(field)):
            yield f"{field!r} names another side than its side {space.sides[field]!r} ({named_side})"
    named = {f"parent of {child!r}": parent for child, parent in space.parents.items()}
    named |= {"no_finding field": space.no_finding} if space.no_finding else {}
    named |= {f"no_finding companion {i}": field for i, field in enumerate(sorted(space.no_finding_compatible))}
    for what, field in named.items():
        if field not in space.fields:
            yield f"{what} is {field!r}, which is not a field"
    for field in space.parents:
        seen = [field]
        while (parent := space.parents.get(seen[-1])) is not None:
            if parent in seen:
                yield f"{field!r} is its own ancestor ({' → '.join([*seen, parent])})"
            seen.append(parent)
    if len(set(space.concepts.values())) < len(space.concepts):
        yield "two fields share a concept, so that mappings would not be one to one"
    if space.none_label is not None and normalise(space.none_label) in space.lookup:
        yield f"none_label {space.none_label!r} is also the name of a field"
    for field, rating in space.ratings.items():
        if not rating.minimum <= rating.absent_at_most < rating.present_at_least <= rating.maximum:
            yield f"the rating of {field!r} needs minimum ≤ absent_at_most < present_at_least ≤ maximum"
