"""Adapter for your own table: CSV, TSV or Parquet, read through a mapping file."""

import difflib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from vivid_monai.data.columns import open_label_space, stored_label_space
from vivid_monai.data.splits import SPLITS
from vivid_monai.errors import VividError
from vivid_monai.prepare.csv_table import age_in_years, read_csv, read_header
from vivid_monai.prepare.source import KEY, ROW, TABLE, BadCell, Rows, Source, Translation, constant
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
_ROLES = ("image", "patient", "id", "study", "age", "slice", "report", "view", "sex", "split", "label_list")


class TableMapping(NamedTuple):
    """A checked mapping file.

    ``data``: its content, with values for view, sex and split, and the label space as manifests store it. ``columns``:
    role ("image", "view", …, "label_list") → column. ``label_columns``: field → its "column", the "values" of the cells
    and, where there may be others, what "other" ones mean; empty with a label_list.
    """

    path: Path
    data: dict[str, Any]
    space: LabelSpace
    columns: dict[str, str]
    label_columns: dict[str, dict[str, Any]]

    def check_columns(self, there: Sequence[str], table: Path) -> None:
        """Raise a VividError that names a column the table lacks, and those like it."""
        labels = {f"label {label!r}": entry["column"] for label, entry in self.label_columns.items()}
        for role, name in ({repr(role): name for role, name in self.columns.items()} | labels).items():
            if name not in there:
                near = difflib.get_close_matches(name, there, n=3)
                hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(there)}"
                raise VividError(f"{self.path}: {role} names column {name!r}, which {table.name} does not have; {hint}")


def load_mapping(path: Path | str) -> TableMapping:
    """Read and check a mapping file (its keys: docs/data.md).

    Raises VividError: unreadable, not JSON, a key missing or unknown, an unknown label or state, labels twice or
    never.
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
    named = {role: data[role] for role in _ROLES if role in data}
    columns = {role: entry["column"] if isinstance(entry, dict) else entry for role, entry in named.items()}
    space = open_label_space(data["label_space"])
    return TableMapping(path, data, space, columns, _label_columns(path, data, space))


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


def read(table: Path | str, *, mapping: Path | str, image_root: Path | str) -> Source:
    """Read a table through a mapping file.

    Rows without an image or a patient are listed as skipped. A cell that the mapping gives no meaning is an error that
    names it, because the mapping can be mended.

    Raises VividError: the table or the mapping cannot be used: the message says which key, column, label, row or cell.
    """
    path, root = Path(table), Path(image_root)
    plan = load_mapping(mapping)
    if path.suffix.lower() in (".parquet", ".pq"):
        rows = _read_parquet(path, plan)
    else:
        suffix = next((s for s in reversed(path.suffixes) if s.lower() not in (".gz", ".bz2", ".zst")), "")
        delimiter = plan.data.get("delimiter", "\t" if suffix.lower() in (".tsv", ".tab") else ",")
        text = {"delimiter": delimiter, "encoding": plan.data.get("encoding", "utf-8")}
        plan.check_columns(read_header(path, **text), path)
        rows = read_csv(path, required=[], key=plan.columns["image"], multiline=True, **text)
    for role, reason in (("image", "no-image"), ("patient", "no-patient")):
        column = plan.columns[role]
        rows.drop(rows.table[column].str.strip() == "", reason, f"column {column!r} is blank")
    _parse(rows, plan, root)
    return Source(
        dataset=plan.data["dataset"],
        rows=rows,
        label_space=plan.data["label_space"],
        image_root=root,
        files=[path, plan.path],
        official=frozenset(rows.table["split"].dropna().unique()),
        label_policy=_policy(plan.data),
        contradictions="skip",
    )


def _read_parquet(path: Path, plan: TableMapping) -> Rows:
    try:
        plan.check_columns(pq.read_schema(path).names, path)
        of_labels = (entry["column"] for entry in plan.label_columns.values())
        names = list(dict.fromkeys([*plan.columns.values(), *of_labels]))
        table = pq.read_table(path, columns=names)
    except (OSError, pa.ArrowException) as error:
        raise VividError(f"{path}: not a readable Parquet file: {error}") from error
    texts = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)  # other tools write "nothing" as NaN
        try:
            texts[name] = pc.fill_null(column.cast(pa.string()), "").to_pandas()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise VividError(f"{path}: column {name!r} is {column.type}, which is not text or numbers") from error
    index = pd.RangeIndex(table.num_rows)
    own = {TABLE: constant(path.name, index), ROW: index + 1, KEY: texts[plan.columns["image"]]}
    return Rows(table=pd.DataFrame({**own, **texts}, index=index), n_read=table.num_rows)


def _parse(rows: Rows, plan: TableMapping, root: Path) -> None:
    def read(role: str, translate: Translation, dtype: str) -> pd.Series:
        if role not in plan.columns:
            return pd.Series(None, rows.table.index, dtype=dtype)
        return rows.read(plan.columns[role], translate, dtype)

    def text(role: str) -> pd.Series:
        return read(role, lambda cell: cell or None, "str")

    image, place = read("image", lambda cell: _under(root, cell), "str"), read("slice", _whole_number, "Int32")
    of_slice = image + "#" + place.astype("str")  # null without a slice
    columns = {
        "id": (text("id") if "id" in plan.columns else of_slice).fillna(image),
        "image": image,
        "slice": place,
        "patient_id": read("patient", str, "category"),
        "study_id": text("study"),
        "report": text("report"),
        **{role: read(role, plan.data.get(role, {}).get("values", {}), "category") for role in _OWN_WORDS},
        "age": read("age", age_in_years, "float64"),
        "dataset": plan.data["dataset"],
        "modality": plan.data.get("modality", "DX"),
        "anatomy": plan.data.get("anatomy", "chest"),
        "labeller": plan.data.get("labeller", plan.data["dataset"]),
        "labeller_version": plan.data.get("labeller_version"),
        "source": plan.data["source"],
        **_states(rows, plan),
    }
    if rows.problems:
        row, problem = min(rows.problems.items())
        where = f"{rows.table.at[row, TABLE]}, row {rows.table.at[row, ROW]}"
        raise VividError(f"{where}: {problem}. Say in {plan.path.name} what it means, or mend the table")
    rows.finish(columns)


def _states(rows: Rows, plan: TableMapping) -> dict[str, Any]:
    if entry := plan.data.get("label_list"):
        unlisted = dict.fromkeys(plan.space.fields, encode(entry["unlisted"]))
        return rows.listed(unlisted, entry["column"], _listed(entry, plan.space))
    return rows.states(plan.space.fields, {f: (one["column"], _state_of(one)) for f, one in plan.label_columns.items()})


def _state_of(entry: Mapping[str, Any]) -> Callable[[str], int]:
    """Cell → state: by its text, else by its number ("1" also means 1.0), else what others mean, if they may be."""
    values: Mapping[str, str | None] = entry["values"]
    exact = {text: encode(state) for text, state in values.items()}
    numbers = {number: state for text, state in exact.items() if (number := _number(text)) is not None}

    def state(text: str) -> int:
        found = exact.get(text)
        if found is None and (number := _number(text)) is not None:
            found = numbers.get(number)
        if found is None and "other" in entry:
            return encode(entry["other"])
        if found is None:
            raise BadCell(f"one of the mapping's values ({', '.join(map(repr, values))})")
        return found

    return state


def _listed(entry: Mapping, space: LabelSpace) -> Callable[[str], frozenset[str]]:
    """Cell → the fields that it lists; its words for "nothing" list none but the space's own No Finding."""
    nothing = {*entry.get("none", ()), *([space.none_label] if space.none_label else [])}

    def fields(text: str) -> frozenset[str]:
        if text in nothing:
            return frozenset({space.no_finding} if space.no_finding else ())
        labels = [label for part in text.split(entry.get("delimiter", "|")) if (label := part.strip())]
        if not labels:
            raise BadCell('a list of labels; if a blank lists nothing, put "" into label_list\'s none')
        try:
            return frozenset(space.resolve(label) for label in labels)
        except VividError as error:
            raise BadCell(f"a list of labels: {error}") from None

    return fields


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole_number(text: str) -> int | None:
    if not text:
        return None
    number = _number(text)
    if number is None or number < 0 or not number.is_integer():
        raise BadCell("a whole number from 0")
    return int(number)


def _under(root: Path, image: str) -> str:
    """The path relative to ``root`` for an image inside it; another path as it is."""
    path = os.path.normpath(image)
    base = os.path.abspath(root)
    return os.path.relpath(path, base) if os.path.isabs(path) and Path(path).is_relative_to(base) else path


def _policy(data: Mapping[str, Any]) -> str:
    if entry := data.get("label_list"):
        return f"A label listed in column {entry['column']!r} is present, any other {entry['unlisted'] or 'null'}."
    policies: dict[str, list[str]] = {}
    for label, given in data["label_columns"].items():
        entry = {"values": data["values"]} if isinstance(given, str) else given
        words = [f"{cell!r} is {state or 'null'}" for cell, state in entry["values"].items()]
        words += [f"any other is {entry['other'] or 'null'}"] if "other" in entry else []
        policies.setdefault(", ".join(words), []).append(label)
    told = [policy if len(policies) == 1 else f"{', '.join(of)}: {policy}" for policy, of in policies.items()]
    return f"{'; '.join(told)}. Fields without a column are null."
