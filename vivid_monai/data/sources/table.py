"""Your own table: CSV, TSV or Parquet, read through a mapping file."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vivid_monai.data.columns import FINDING, WORD
from vivid_monai.data.sources.cells import BadCell, CellReader, Translated, age_in_years, constant
from vivid_monai.data.sources.csv_table import read_csv, read_header
from vivid_monai.data.sources.mapping import TableMapping, load_mapping
from vivid_monai.data.sources.rows import KEY, ROW, TABLE, Rows
from vivid_monai.data.sources.source import Source
from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.states import NULL, PRESENT, encode

_DELIMITERS = {".tsv": "\t", ".tab": "\t"}


def read(table: Path | str, *, mapping: Path | str, image_root: Path | str) -> Source:
    """Read a table through a mapping file.

    Rows without an image or a patient are listed as skipped. A cell that the mapping gives no meaning is an error that
    names it, because the mapping can be mended.

    Raises:
        VividError: the table or the mapping cannot be used: the message says which key, column, label, row or cell.
    """
    path, root = Path(table), Path(image_root)
    plan = load_mapping(mapping)
    rows = _read_parquet(path, plan) if path.suffix.lower() in (".parquet", ".pq") else _read_text(path, plan)
    for role, reason in (("image", "no-image"), ("patient", "no-patient")):
        blank = pc.equal(pc.utf8_trim_whitespace(rows.table[plan.column(role)]), "")
        rows.drop(blank, reason, f"column {plan.column(role)!r} is blank")
    _parse(rows, plan, root)
    return Source(
        dataset=plan.data["dataset"],
        rows=rows,
        label_space=plan.label_space,
        image_root=root,
        files=[path, plan.path],
        official=frozenset(pc.unique(rows.table["split"]).drop_null().to_pylist()),
        label_policy=_policy(plan),
        contradictions="skip",
        val=0.1,
        test=0.2,
    )


def _read_text(path: Path, plan: TableMapping) -> Rows:
    suffix = next((s for s in reversed(path.suffixes) if s.lower() not in (".gz", ".bz2", ".zst")), "")
    delimiter = plan.data.get("delimiter", _DELIMITERS.get(suffix.lower(), ","))
    text = {"delimiter": delimiter, "encoding": plan.data.get("encoding", "utf-8")}
    plan.check_columns(read_header(path, **text), path)
    return read_csv(path, required=[], key=str(plan.column("image")), multiline=True, **text)


def _read_parquet(path: Path, plan: TableMapping) -> Rows:
    try:
        plan.check_columns(pq.read_schema(path).names, path)
        table = pq.read_table(path, columns=plan.columns())
    except (OSError, pa.ArrowException) as error:
        raise VividError(f"{path}: not a readable Parquet file: {error}") from error
    texts = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)  # other tools write "nothing" as NaN
        try:
            texts[name] = pc.fill_null(column.cast(pa.string()), "")
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise VividError(f"{path}: column {name!r} is {column.type}, which is not text or numbers") from error
    n = table.num_rows
    own = {TABLE: constant(path.name, n), ROW: pa.array(np.arange(1, n + 1)), KEY: texts[str(plan.column("image"))]}
    return Rows(table=pa.table({**texts, **own}), n_read=n)


def _parse(rows: Rows, plan: TableMapping, root: Path) -> None:
    n, space = rows.table.num_rows, plan.space
    cells = CellReader(rows)

    def text(role: str) -> pa.Array:
        return cells.read(name, lambda cell: cell or None, pa.string()) if (name := plan.column(role)) else None

    def words(role: str) -> pa.Array:
        return cells.read(name, plan.words(role), WORD) if (name := plan.column(role)) else constant(None, n)

    image = cells.read(str(plan.column("image")), lambda cell: _under(root, cell), pa.string())
    place = cells.read(name, _whole_number, pa.int32()) if (name := plan.column("slice")) else pa.nulls(n, pa.int32())
    of_slice = pc.binary_join_element_wise(image, place.cast(pa.string()), "#")  # null without a slice
    age = cells.read(name, age_in_years, pa.float64()) if (name := plan.column("age")) else pa.nulls(n, pa.float64())
    columns: dict[str, pa.Array] = {
        "id": pc.coalesce(text("id") if plan.column("id") else of_slice, image),
        "image": image,
        "slice": place,
        "patient_id": cells.read(str(plan.column("patient")), str, WORD),
        "study_id": text("study") if plan.column("study") else pa.nulls(n, pa.string()),
        "report": text("report") if plan.column("report") else pa.nulls(n, pa.string()),
        "split": words("split"),
        "view": words("view"),
        "sex": words("sex"),
        "age": age,
        "dataset": constant(plan.data["dataset"], n),
        "modality": constant(plan.data.get("modality", "DX"), n),
        "anatomy": constant(plan.data.get("anatomy", "chest"), n),
        "labeller": constant(plan.data.get("labeller", plan.data["dataset"]), n),
        "labeller_version": constant(plan.data.get("labeller_version"), n),
        "source": constant(plan.data["source"], n),
        **_states(cells, plan, space, n),
    }
    first = cells.first_problem()
    if first is not None:
        position, problem = first
        where = f"{rows.table[TABLE][position]}, row {rows.table[ROW][position]}"
        raise VividError(f"{where}: {problem}. Say in {plan.path.name} what it means, or mend the table")
    cells.finish(columns)


def _states(cells: CellReader, plan: TableMapping, space: LabelSpace, n: int) -> dict[str, pa.Array]:
    never = pa.array(np.full(n, NULL, dtype=np.int8))
    if "label_list" not in plan.data:
        state = _state_of(plan.data["values"])
        return {
            FINDING + field: cells.read(plan.label_columns[field], state, pa.int8())
            if field in plan.label_columns
            else never
            for field in space.fields
        }
    entry = plan.data["label_list"]
    listed = cells.translate(entry["column"], _listed(entry, space))
    unlisted = encode(entry["unlisted"])
    return {FINDING + field: _membership(listed, field, unlisted) for field in space.fields}


def _membership(listed: Translated, field: str, unlisted: int) -> pa.Array:
    return listed.take([unlisted if s is None or field not in s else PRESENT for s in listed.values], pa.int8())


def _state_of(values: Mapping[str, str | None]) -> Callable[[str], int]:
    """Cell → state: by its text, else by its number ("1" also means 1.0)."""
    exact = {text: encode(state) for text, state in values.items()}
    numbers = {number: state for text, state in exact.items() if (number := _number(text)) is not None}

    def state(text: str) -> int:
        if text in exact:
            return exact[text]
        number = _number(text)
        if number is None or number not in numbers:
            raise BadCell(f"one of the mapping's values ({', '.join(map(repr, values))})")
        return numbers[number]

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
    number = _number(text) if text else None
    if text and (number is None or number != int(number) or number < 0):
        raise BadCell("a whole number from 0")
    return None if number is None else int(number)


def _under(root: Path, image: str) -> str:
    """The path from ``root`` where the image lies under it; else as it is, absolute."""
    path = os.path.normpath(image)
    base = os.path.abspath(root)
    return os.path.relpath(path, base) if os.path.isabs(path) and Path(path).is_relative_to(base) else path


def _policy(plan: TableMapping) -> str:
    if "label_list" in plan.data:
        entry = plan.data["label_list"]
        return f"A label listed in column {entry['column']!r} is present, any other {entry['unlisted'] or 'null'}."
    values = ", ".join(f"{cell!r} is {state or 'null'}" for cell, state in plan.data["values"].items())
    return f"{values}. Fields without a column are null."
