"""The mapping file of your own table: which column and which cell means what."""

import ast
import difflib
import json
import string
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from vivid_monai.data.columns import open_label_space, stored_label_space
from vivid_monai.data.splits import SPLITS
from vivid_monai.errors import VividError
from vivid_monai.prepare.cells import as_number
from vivid_monai.prepare.source import BadCell
from vivid_monai.storage.files import require_file
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.schema import load_schema, parse_json
from vivid_monai.ums.states import encode

_SCHEMA = resources.files("vivid_monai.prepare") / "mapping-1.0.schema.json"
_OWN_WORDS: dict[str, dict[str, str | None]] = {
    "view": {view or "": view for view in load_schema(("view",))["enum"]},
    "sex": {"M": "M", "F": "F", "O": "O", "Male": "M", "Female": "F", "Other": "O", "": None},
    "split": {**dict(zip(SPLITS, SPLITS, strict=True)), "": None},
}
"""Cell → word of a column without ``values``: the cells must be the words themselves."""
WORDS = tuple(_OWN_WORDS)
_ROLES = ("image", "patient", "id", "study", "age", "slice", "report", "reader", *WORDS, "label_list")


class TableMapping(NamedTuple):
    """A checked mapping file.

    ``data``: its content, with values for view, sex and split, and the label space as manifests store it. ``columns``:
    role ("image", "view", …, "label_list") → column; of an image's template not. ``label_columns``: field → its
    "column", the "values" of the cells and, where there may be others, what "other" ones mean; empty with a label_list.
    """

    path: Path
    data: dict[str, Any]
    space: LabelSpace
    columns: dict[str, str]
    label_columns: dict[str, dict[str, Any]]

    @property
    def image_columns(self) -> list[str]:
        """The columns that an image's path is made of."""
        return [self.data["image"]] if isinstance(self.data["image"], str) else _parts(self.data["image"]["template"])

    @property
    def identifiers(self) -> list[str]:
        """The columns that name patients, studies, rows and images: each must stay as it is written."""
        roles = ("patient", "id", "study")
        return [*(self.columns[role] for role in roles if role in self.columns), *self.image_columns]

    @property
    def needed(self) -> dict[str, str]:
        """What the mapping says of a column, in words → the column."""
        named = {repr(role): name for role, name in self.columns.items()}
        named |= {
            f"the image's template, {name!r},": name for name in self.image_columns if "image" not in self.columns
        }
        named |= {f"box {side!r}": name for side, name in self.data.get("box", {}).items()}
        return named | {f"label {label!r}": entry["column"] for label, entry in self.label_columns.items()}

    def check_columns(self, there: Sequence[str], table: Path) -> None:
        """Raise a VividError that names a column the table lacks, and those like it, or has twice."""
        for role, name in self.needed.items():
            if name not in there:
                near = difflib.get_close_matches(name, there, n=3)
                hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(there)}"
                raise VividError(f"{self.path}: {role} names column {name!r}, which {table.name} does not have; {hint}")
        if twice := sorted({name for name in self.needed.values() if list(there).count(name) > 1}):
            raise VividError(f"{table}: more than one column is named {', '.join(map(repr, twice))}")


def load_mapping(path: Path | str) -> TableMapping:
    """Read and check a mapping file (its keys: docs/data.md).

    Raises VividError: unreadable, not JSON, a key missing or unknown, an unknown label or state, labels twice or
    never.
    """
    path = Path(path)
    require_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VividError(f"{path}: the mapping file cannot be read: {error}") from error
    data = parse_json(text, where=str(path))
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    for broken in Draft202012Validator(schema).iter_errors(data):
        raise VividError(f"{path}: {_sentence(broken, schema)}")
    if ("label_columns" in data) == ("label_list" in data):
        raise VividError(f"{path}: give either label_columns (one column for each label) or label_list (all in one)")
    shared = [label for label, entry in data.get("label_columns", {}).items() if isinstance(entry, str)]
    if bool(shared) != ("values" in data):
        if shared:
            raise VividError(
                f"{path}: label_columns needs values, the state that each cell means: {shared[0]!r} has none"
            )
        raise VividError(f"{path}: values is for the label_columns that have none of their own, and there is none")
    data |= {"label_space": _label_space(path, data)}
    for role, words in _OWN_WORDS.items():
        if isinstance(data.get(role), str):
            data[role] = {"column": data[role], "values": words}
    if unknown := [
        word for word in data.get("split", {"values": {}})["values"].values() if word not in (*SPLITS, None)
    ]:
        raise VividError(f"{path}: split word {unknown[0]!r} is none of {', '.join(SPLITS)} or null")
    if isinstance(data["image"], dict) and not _parts(data["image"]["template"]):
        raise VividError(f"{path}: the image's template names no column; write such as '{{folder}}/{{name}}.png'")
    if data.get("rows") == "each" and "reader" not in data:
        raise VividError(f"{path}: rows 'each' keeps each reader's rows apart, so reader must name his column")
    named = {role: data[role] for role in _ROLES if role in data and "template" not in data[role]}
    columns = {role: entry["column"] if isinstance(entry, dict) else entry for role, entry in named.items()}
    space = open_label_space(data["label_space"])
    return TableMapping(path, data, space, columns, _label_columns(path, data, space))


def _parts(template: str) -> list[str]:
    """The columns that a template names; none where it is not one."""
    try:
        return [name for _, name, *_ in string.Formatter().parse(template) if name]
    except ValueError:
        return []


def _sentence(error: ValidationError, schema: dict[str, Any]) -> str:
    where = "/".join(map(str, error.absolute_path)) or "the top"
    if error.validator == "additionalProperties" and not error.absolute_path:
        unknown = next(key for key in error.instance if key not in schema["properties"])
        near = difflib.get_close_matches(unknown, schema["properties"], n=1)
        return f"unknown key {unknown!r}{f', did you mean {near[0]!r}?' if near else ''}"
    if error.validator == "required":
        return f"at {where}: {error.message}; every mapping names {', '.join(error.validator_value)}"
    return f"at {where}: {error.message}"


def _label_space(path: Path, data: dict[str, Any]) -> str | dict[str, Any]:
    """The label space as a manifest stores it; without one, a space of the labels as they are named."""
    given = data.get("label_space")
    if given is None:
        if "label_list" in data:
            raise VividError(f"{path}: label_list needs a label_space, so that a misspelt label is not a new one")
        return stored_label_space(
            {
                "label_space_version": "1.0",
                "name": data["dataset"],
                "description": f"The labels of {data['dataset']}, as its mapping file names them.",
                "source": path.name,
                "fields": [{"name": label} for label in data["label_columns"]],
            }
        )
    beside = isinstance(given, str) and (path.parent / given).is_file()
    try:
        return stored_label_space(path.parent / given if beside else given)
    except VividError as error:
        raise VividError(f"{path}: label_space: {error}") from error


def _label_columns(path: Path, data: dict[str, Any], space: LabelSpace) -> dict[str, dict[str, Any]]:
    """Field → column and states of its cells."""
    fields: dict[str, dict[str, Any]] = {}
    for label, given in data.get("label_columns", {}).items():
        entry = {"column": given, "values": data["values"]} if isinstance(given, str) else given
        try:
            field = space.resolve(label)
        except VividError as error:
            raise VividError(f"{path}: label_columns: {error}") from error
        if fields.setdefault(field, entry) != entry:
            two = f"{fields[field]['column']!r} and {entry['column']!r}"
            raise VividError(f"{path}: label_columns gives {field!r} two columns, {two}")
    return fields


def state_of(entry: Mapping[str, Any]) -> Callable[[str], int]:
    """Cell → state: by its text, else by its number ("1" also means 1.0), else what others mean, if they may be."""
    values: Mapping[str, str | None] = entry["values"]
    exact = {text: encode(state) for text, state in values.items()}
    numbers = {number: state for text, state in exact.items() if (number := as_number(text)) is not None}

    def state(text: str) -> int:
        found = exact.get(text)
        if found is None and (number := as_number(text)) is not None:
            found = numbers.get(number)
        if found is None and "other" in entry:
            return encode(entry["other"])
        if found is None:
            raise BadCell(f"one of the mapping's values ({', '.join(map(repr, values))})")
        return found

    return state


def listed_in(entry: Mapping, space: LabelSpace) -> Callable[[str], frozenset[str]]:
    """Cell → the fields that it lists; its words for "nothing" list none but the space's own No Finding.

    A cell may also be a list as Python writes it: ``['Edema', 'Nodule']``.
    """
    nothing = {*entry.get("none", ()), *([space.none_label] if space.none_label else [])}
    ignored = entry.get("unknown") == "ignore"

    def fields(text: str) -> frozenset[str]:
        if text in nothing:
            return frozenset({space.no_finding} if space.no_finding else ())
        labels = [label for part in _items(text, entry.get("delimiter", "|")) if (label := part.strip())]
        if not labels:
            raise BadCell(f"a list of labels; if {text!r} lists nothing, put it into label_list's none")
        found = set()
        for label in labels:
            try:
                found |= {space.resolve(label)} if label not in nothing else set()
            except VividError as error:
                if not ignored:
                    ways = "label_list's unknown 'ignore' passes others over"
                    raise BadCell(f"a list of labels ({ways}): {error}") from None
        return frozenset(found)

    return fields


def _items(text: str, delimiter: str) -> list[str]:
    """The labels of a cell: between delimiters, or in a list as Python writes it."""
    if not (text.startswith("[") and text.endswith("]")):
        return text.split(delimiter)
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise BadCell("a list of labels, such as ['Edema', 'Nodule']")
    return items


def policy_of(data: Mapping[str, Any]) -> str:
    if entry := data.get("label_list"):
        return (
            f"A label listed in column {entry['column']!r} is present, as are the fields above it that the list looks "
            f"for; any other that it looks for is {entry['unlisted'] or 'null'}, and what it does not look for null."
        )
    policies: dict[str, list[str]] = {}
    for label, given in data["label_columns"].items():
        entry = {"values": data["values"]} if isinstance(given, str) else given
        words = [f"{cell!r} is {state or 'null'}" for cell, state in entry["values"].items()]
        words += [f"any other is {entry['other'] or 'null'}"] if "other" in entry else []
        policies.setdefault(", ".join(words), []).append(label)
    told = [policy if len(policies) == 1 else f"{', '.join(of)}: {policy}" for policy, of in policies.items()]
    return f"{'; '.join(told)}. Fields without a column are null."
