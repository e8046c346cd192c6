"""Adapter for your own table: CSV, TSV or Parquet, read through a mapping file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vivid_monai.data.columns import FINDING
from vivid_monai.errors import VividError
from vivid_monai.prepare.cells import (
    age_in_years,
    as_number,
    is_bound,
    is_missing,
    require_exact,
    same_numbers,
    whole_number,
)
from vivid_monai.prepare.csv_table import read_csv, read_header
from vivid_monai.prepare.long_table import merge_rows, refuse_long_table
from vivid_monai.prepare.mapping import WORDS, TableMapping, listed_in, load_mapping, policy_of, state_of
from vivid_monai.prepare.source import KEY, ROW, TABLE, BadCell, Rows, Source, Translation, constant
from vivid_monai.storage.files import require_file, require_text
from vivid_monai.ums.states import NULL, PRESENT, encode

_IMAGE = "#image"
"""Column of the text that an image's path was made of."""


def read(table: Path | str, *, mapping: Path | str, image_root: Path | str) -> Source:
    """Read a table through a mapping file.

    Rows without an image or a patient are listed as skipped. A cell that the mapping gives no meaning is an error that
    names it, because the mapping can be mended. Splits that the table brings are official: nothing is drawn into them.

    Raises VividError: the table or the mapping cannot be used: the message says which key, column, label, row or cell.
    """
    path, root = Path(table), Path(image_root)
    require_text(root)
    plan = load_mapping(mapping)
    if path.suffix.lower() in (".parquet", ".pq"):
        rows = _read_parquet(path, plan)
    else:
        suffix = next((s for s in reversed(path.suffixes) if s.lower() not in (".gz", ".bz2", ".zst")), "")
        delimiter = plan.data.get("delimiter", "\t" if suffix.lower() in (".tsv", ".tab") else ",")
        text = {"delimiter": delimiter, "encoding": plan.data.get("encoding", "utf-8")}
        plan.check_columns(read_header(path, **text), path)
        rows = read_csv(path, required=[], key=plan.image_columns[0], multiline=True, **text)
    rows.private = frozenset(plan.identifiers)
    for name in plan.identifiers:
        require_exact(rows.table[name].unique(), f"{path}: column {name!r}")
    for name in plan.image_columns:
        rows.drop(rows.table[name].map(is_missing), "no-image", f"column {name!r} is blank")
    rows.table = rows.table.assign(**{_IMAGE: _image_texts(rows.table, plan)})
    name = plan.columns["patient"]
    rows.drop(rows.table[name].map(is_missing), "no-patient", f"column {name!r} is blank")
    _parse(rows, plan, root)
    return Source(
        dataset=plan.data["dataset"],
        rows=rows,
        label_space=plan.data["label_space"],
        image_root=root,
        files=[path, plan.path],
        official=frozenset(rows.table["split"].dropna().unique()),
        label_policy=policy_of(plan.data),
        contradictions="skip",
    )


_EXACT = {"halffloat": 2**11, "float": 2**24}
"""Arrow's short floats, and up to which number they hold each whole one."""


def _largest(column: pa.ChunkedArray) -> float:
    numbers = np.abs(column.to_numpy().astype(np.float64))
    return float(numbers[np.isfinite(numbers)].max(initial=0))


def _read_parquet(path: Path, plan: TableMapping) -> Rows:
    require_file(path)
    try:
        plan.check_columns(pq.read_schema(path).names, path)
        table = pq.read_table(path, columns=list(dict.fromkeys(plan.needed.values())))
    except (OSError, pa.ArrowException) as error:
        raise VividError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error
    texts = {}
    for name in table.column_names:
        column = table[name]
        if name in plan.identifiers and (limit := _EXACT.get(str(column.type))) and _largest(column) > limit:
            raise VividError(
                f"{path}: column {name!r} holds numbers over {limit:,} as {column.type}: last digits are lost, and "
                "two may have become one; write them as text or whole numbers where the table is made"
            )
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)  # other tools write "nothing" as NaN
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            column = pa.array([None if one is None else str(one) for one in column.to_pylist()], pa.string())
        try:
            texts[name] = pc.fill_null(column.cast(pa.string()), "").to_pandas()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise VividError(f"{path}: column {name!r} is {column.type}, which is not text or numbers") from error
    index = pd.RangeIndex(table.num_rows)
    own = {TABLE: constant(path.name, index), ROW: index + 1, KEY: texts[plan.image_columns[0]]}
    return Rows(table=pd.DataFrame({**own, **texts}, index=index), n_read=table.num_rows)


def _image_texts(table: pd.DataFrame, plan: TableMapping) -> pd.Series:
    """Each row's path, as its column or the mapping's template gives it."""
    if "image" in plan.columns:
        return table[plan.columns["image"]].str.strip()
    template, names = plan.data["image"]["template"], plan.image_columns
    cells = zip(*(table[name].str.strip() for name in names), strict=True)
    try:
        texts = [template.format_map(dict(zip(names, row, strict=True))) for row in cells]
    except (ValueError, LookupError, AttributeError) as error:
        raise VividError(f"{plan.path}: the image's template cannot be filled in: {error}") from error
    return pd.Series(texts, table.index, dtype="str")


def _parse(rows: Rows, plan: TableMapping, root: Path) -> None:
    def read(role: str, translate: Translation, dtype: str) -> pd.Series:
        if role not in plan.columns:
            return pd.Series(None, rows.table.index, dtype=dtype)
        return rows.read(plan.columns[role], translate, dtype)

    def text(role: str) -> pd.Series:
        return read(role, lambda cell: None if is_missing(cell) else cell, "str")

    image, place = rows.read(_IMAGE, lambda cell: _under(root, cell), "str"), read("slice", whole_number, "Int32")
    of_slice = image + "#" + place.astype("str")  # null without a slice
    ids = (text("id") if "id" in plan.columns else of_slice).fillna(image)
    reader = text("reader")
    columns = {
        "id": ids,
        "image": image,
        "slice": place,
        "patient_id": _patients(rows, plan),
        "study_id": text("study"),
        "report": text("report"),
        **{role: read(role, plan.data.get(role, {}).get("values", {}), "category") for role in WORDS},
        "age": read("age", age_in_years, "float64"),
        "dataset": plan.data["dataset"],
        "modality": plan.data.get("modality", "DX"),
        "anatomy": plan.data.get("anatomy", "chest"),
        "labeller": plan.data.get("labeller", plan.data["dataset"]),
        "labeller_version": plan.data.get("labeller_version"),
        "source": plan.data["source"],
        "reader": reader,
        **_states(rows, plan),
    }
    if "box" in plan.data:
        columns["boxes"] = _boxes(rows, plan, columns)
    if "age" in plan.columns and (bounds := int(rows.table[plan.columns["age"]].map(is_bound).sum())):
        rows.notes.append(f"{bounds:,} ages are bounds, such as '90+': the number is taken.")
    if rows.problems:
        row, problem = min(rows.problems.items())
        where = f"{rows.table.at[row, TABLE]}, row {rows.table.at[row, ROW]}"
        of_age = "age" in plan.columns and f"column {plan.columns['age']!r} " in problem
        way_out = "leave the cell empty" if of_age else f"say in {plan.path.name} what it means"
        raise VividError(f"{where}: {problem}. Mend the table, or {way_out}")
    rows.finish(columns)
    if "rows" in plan.data:
        merge_rows(rows, plan.data["rows"], plan.space)
    else:
        refuse_long_table(rows, plan.path)


def _patients(rows: Rows, plan: TableMapping) -> pd.Series:
    """Patients by their number or as written; a VividError where that would make a difference and nothing is said."""
    name, way = plan.columns["patient"], plan.data.get("patient_ids")
    plain = same_numbers(text.strip() for text in rows.table[name].unique())
    if way is None and len(set(plain.values())) < len(plain):
        cells = rows.table[name].str.strip()
        numbers = cells.map(plain)
        two = cells.groupby(numbers).transform("nunique") > 1
        first = rows.table.index[two][0]
        other = rows.table.index[two & (numbers == numbers[first]) & (cells != cells[first])][0]
        some = " and ".join(str(rows.table.at[row, ROW]) for row in (first, other))
        raise VividError(
            f"{rows.table.at[first, TABLE]}: column {name!r} writes one number in two ways (rows {some}, as 7 and 7.0 "
            f'or 007): one patient or two? Say in {plan.path.name}: "patient_ids": "number" (one) or "text" (two)'
        )
    return rows.read(name, (lambda cell: plain.get(cell, cell)) if way == "number" else str, "category")


def _states(rows: Rows, plan: TableMapping) -> dict[str, Any]:
    if entry := plan.data.get("label_list"):
        return _listed_states(rows, plan, entry)
    return rows.states(plan.space.fields, {f: (one["column"], state_of(one)) for f, one in plan.label_columns.items()})


def _listed_states(rows: Rows, plan: TableMapping, entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Listed is present, and so is what stands above it; what the list never looks for is null, whatever is listed."""
    space, fields = plan.space, listed_in(entry, plan.space)
    try:
        looked_for = frozenset(space.resolve(label) for label in entry["looked_for"]) if "looked_for" in entry else None
    except VividError as error:
        raise VividError(f"{plan.path}: looked_for: {error}") from error

    def unlisted(found: frozenset[str]) -> dict[str, int]:
        known = found if looked_for is None else looked_for | found
        never = [field for field in space.fields if field not in known]
        if never and looked_for is None and entry["unlisted"] is not None:
            rows.notes.append(
                f"No row lists {', '.join(never)}: null everywhere, as nobody may have looked. label_list's looked_for "
                "names what was."
            )
        return {field: encode(entry["unlisted"]) if field in known else NULL for field in space.fields}

    states = rows.listed(unlisted, entry["column"], fields)
    for field in space.fields:  # a parent that is looked for is present with its child
        for above in space.ancestors(field):
            over = states[FINDING + above]
            if (over != NULL).any() or (looked_for and above in looked_for):
                states[FINDING + above] = np.where(states[FINDING + field] == PRESENT, np.int8(PRESENT), over)
    return states


def _boxes(rows: Rows, plan: TableMapping, columns: dict[str, Any]) -> pd.Series:
    """The box of each row, once for every field that the row calls present, as a manifest holds boxes."""
    names = plan.data["box"]
    corners = "x_min" in names

    def side(text: str) -> float | None:
        if is_missing(text):
            return None
        if (number := as_number(text)) is None or not np.isfinite(number):
            raise BadCell("a number of pixels")
        return number

    sides = {role: rows.read(name, side, "float64").to_numpy() for role, name in names.items()}
    x, y = (sides["x_min"], sides["y_min"]) if corners else (sides["x"], sides["y"])
    width = sides["x_max"] - x if corners else sides["width"]
    height = sides["y_max"] - y if corners else sides["height"]
    present = {f: np.asarray(columns[FINDING + f]) == PRESENT for f in plan.space.fields}
    # A box is the label's own, not that of the fields which stand above it.
    implied = {f: [c for c in plan.space.fields if f in plan.space.ancestors(c)] for f in plan.space.fields}
    known = [np.isfinite(values) for values in (x, y, width, height)]
    boxes: list[list[dict[str, Any]] | None] = []
    for at, row in enumerate(rows.table.index):
        there = sum(bool(side[at]) for side in known)
        if there not in (0, 4):
            rows.problems.setdefault(row, "its box has some of its sides only")
        box = {"x": x[at], "y": y[at], "width": width[at], "height": height[at]}
        own = [f for f, on in present.items() if on[at] and not any(present[c][at] for c in implied[f])]
        boxes.append([{"field": field, **box} for field in own] if there == 4 and own else None)
    return pd.Series(boxes, rows.table.index, dtype=object)


def _under(root: Path, image: str) -> str:
    """The path relative to ``root`` for an image inside it; another path as it is."""
    path = os.path.normpath(image)
    base = os.path.abspath(root)
    return os.path.relpath(path, base) if os.path.isabs(path) and Path(path).is_relative_to(base) else path
