"""The mapping file: which column of your table means what, and which cell means which state."""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from vivid_monai.data.label_spaces import LabelSpaceSource, open_label_space, stored_label_space
from vivid_monai.data.splits import SPLITS
from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.schema import parse_json

_SCHEMA = resources.files("vivid_monai.data.sources") / "mapping-1.0.schema.json"
_SEXES = {"M": "M", "F": "F", "O": "O", "Male": "M", "Female": "F", "Other": "O", "": None}
_PLAIN = ("image", "patient", "id", "study", "age", "slice", "report")
_WORDS = ("view", "sex", "split")


@dataclass(frozen=True)
class TableMapping:
    """A checked mapping file.

    Attributes:
        path: where it was read from, for messages.
        data: its content.
        label_space: of the manifest.
        label_columns: field → column; empty where the labels are a list in one column.
    """

    path: Path
    data: dict[str, Any]
    label_space: LabelSpaceSource
    label_columns: dict[str, str]

    @property
    def space(self) -> LabelSpace:
        """The label space, opened."""
        return open_label_space(stored_label_space(self.label_space))

    def column(self, role: str) -> str | None:
        """The column for a role ("image", "view", …), ``None`` where the mapping has none."""
        entry = self.data.get(role)
        return entry["column"] if isinstance(entry, dict) else entry

    def words(self, role: str) -> Mapping[str, str | None]:
        """Cell → word for "view", "sex" or "split". Without ``values`` the cells must be the words themselves."""
        entry = self.data[role]
        if isinstance(entry, dict):
            return entry["values"]
        return {"view": _views(), "sex": _SEXES, "split": {**dict(zip(SPLITS, SPLITS, strict=True)), "": None}}[role]

    def columns(self) -> list[str]:
        """Every column that is read."""
        roles = [name for role in (*_PLAIN, *_WORDS) if (name := self.column(role))]
        listed = [self.data["label_list"]["column"]] if "label_list" in self.data else []
        return list(dict.fromkeys([*roles, *self.label_columns.values(), *listed]))

    def check_columns(self, there: list[str], table: Path) -> None:
        """Raise a VividError that names a column the table lacks, and those like it."""
        for role, name in self._named():
            if name not in there:
                near = difflib.get_close_matches(name, there, n=3)
                hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(there)}"
                raise VividError(f"{self.path}: {role} names column {name!r}, which {table.name} does not have; {hint}")

    def _named(self) -> Iterator[tuple[str, str]]:
        yield from ((repr(role), name) for role in (*_PLAIN, *_WORDS) if (name := self.column(role)))
        yield from ((f"label {label!r}", name) for label, name in self.label_columns.items())
        if "label_list" in self.data:
            yield "'label_list'", self.data["label_list"]["column"]


def load_mapping(path: Path | str) -> TableMapping:
    """Read and check a mapping file (docs/data.md tells its keys).

    Raises:
        VividError: unreadable, not JSON, a key missing or unknown, an unknown label or state, labels twice or never.
    """
    path = Path(path)
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
    if ("label_columns" in data) != ("values" in data):
        raise VividError(f"{path}: label_columns needs values, the state that each cell means, and label_list has none")
    split_words = data["split"]["values"].values() if isinstance(data.get("split"), dict) else ()
    for word in split_words:
        if word is not None and word not in SPLITS:
            raise VividError(f"{path}: split word {word!r} is none of {', '.join(SPLITS)} or null")
    space = _label_space(path, data)
    return TableMapping(path, data, space, _fields(path, data.get("label_columns", {}), space))


def _label_space(path: Path, data: dict[str, Any]) -> LabelSpaceSource:
    given = data.get("label_space")
    if given is None:
        if "label_list" in data:
            raise VividError(f"{path}: label_list needs a label_space, so that a misspelt label is not a new one")
        return {
            "label_space_version": "1.0",
            "name": data["dataset"],
            "description": f"The labels of {data['dataset']}, as its mapping file names them.",
            "source": path.name,
            "fields": [{"name": label} for label in data["label_columns"]],
        }
    beside = path.parent / given if isinstance(given, str) else None
    source = beside if beside is not None and beside.is_file() else given
    try:
        return stored_label_space(source)
    except VividError as error:
        raise VividError(f"{path}: label_space: {error}") from error


def _fields(path: Path, columns: dict[str, str], source: LabelSpaceSource) -> dict[str, str]:
    space = open_label_space(stored_label_space(source))
    fields: dict[str, str] = {}
    for label, column in columns.items():
        try:
            field = space.resolve(label)
        except VividError as error:
            raise VividError(f"{path}: label_columns: {error}") from error
        if fields.setdefault(field, column) != column:
            raise VividError(f"{path}: label_columns gives {field!r} two columns, {fields[field]!r} and {column!r}")
    return fields


def _views() -> dict[str, str | None]:
    schema = json.loads((resources.files("vivid_monai.ums") / "schemas" / "ums-1.0.schema.json").read_text("utf-8"))
    return {view or "": view for view in schema["properties"]["view"]["enum"]}


def _sentence(error: ValidationError, schema: dict[str, Any]) -> str:
    where = "/".join(map(str, error.absolute_path)) or "the top"
    if error.validator == "additionalProperties" and not error.absolute_path:
        unknown = next(key for key in error.instance if key not in schema["properties"])
        near = difflib.get_close_matches(unknown, schema["properties"], n=1)
        return f"unknown key {unknown!r}{f', did you mean {near[0]!r}?' if near else ''}"
    if error.validator == "required":
        return f"at {where}: {error.message}; every mapping names {', '.join(error.validator_value)}"
    return f"at {where}: {error.message}"
