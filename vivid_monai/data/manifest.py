"""The manifest: one row for each image, with its states, its patient and its split, in one Parquet file."""

import json
import os
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vivid_monai import __version__
from vivid_monai.data.columns import (
    FINDING,
    WORD,
    LabelSpaceSource,
    conform,
    conform_column,
    manifest_schema,
    open_label_space,
    record_of,
    state_columns,
    stored_label_space,
)
from vivid_monai.data.items import Items
from vivid_monai.data.splits import SPLITS, assert_disjoint
from vivid_monai.errors import VividError, first_line
from vivid_monai.logs import progress
from vivid_monai.storage.arrow import ArrowFile
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.record import Record
from vivid_monai.ums.states import ABSENT, NULL, PRESENT, UNCERTAIN


def check_rows(table: pa.Table, fields: Sequence[str]) -> None:
    """Look at a table of `manifest_schema` with unified dictionaries.

    Raises:
        VividError: no rows, states or splits that do not exist, an id twice.
        SplitError: a patient in more than one split.
    """
    if not table.num_rows:
        raise VividError("the manifest has no rows")
    unknown = set(pc.unique(table["split"]).to_pylist()) - set(SPLITS)
    if unknown:
        raise VividError(f"the manifest has a split {sorted(unknown)[0]!r}; splits are {', '.join(SPLITS)}")
    if (twice := repeated(table["id"])) is not None:
        raise VividError(f"the manifest has the id {twice!r} on more than one row")
    for field, column in zip(fields, state_columns(fields), strict=True):
        lowest, highest = pc.min_max(table[column]).as_py().values()
        if lowest < NULL or highest > UNCERTAIN:
            raise VividError(f"the manifest's field {field!r} holds {lowest} to {highest}; states are −1, 0, 1 and 2")
    assert_disjoint(table["patient_id"], table["split"], where="manifest")


def repeated(words: pa.ChunkedArray) -> str | None:
    """The first of the strings that is there more than once; None: there is no such string."""
    # A set of ten million ids takes gigabytes, their hashes 80 MB; equal hashes are only a reason to look closer.
    hashes = np.empty(len(words), np.int64)
    first = 0
    for chunk in words.chunks:
        for part in (chunk[start : start + (1 << 16)] for start in range(0, len(chunk), 1 << 16)):
            hashes[first : first + len(part)] = [hash(word) for word in part.to_pylist()]
            first += len(part)
    ordered = np.sort(hashes)
    suspects = ordered[1:][ordered[1:] == ordered[:-1]]
    counts = pc.value_counts(words.filter(pa.array(np.isin(hashes, suspects)))).to_pylist()
    return next((pair["values"] for pair in counts if pair["counts"] > 1), None)


MAPPED_FROM = 1_000_000
"""Rows from which a manifest is mapped: a smaller one takes under 0.5 GB in memory."""

_BATCH = 1 << 17


def arrow_file_of(path: Path) -> ArrowFile:
    """The Arrow file of a Parquet file as it is now: beside it, `.arrow` after its name."""
    status = path.stat()
    # A file replaced in place changes its ctime even where size and modification time are kept.
    key = [__version__, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return ArrowFile(path.with_name(f"{path.name}.arrow"), json.dumps(key))


def _batches(file: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in `schema`; all batches share the dictionaries of the first."""
    words = {field.name: _words(file, field) for field in schema if field.type == WORD}
    others = [field.name for field in schema if field.name not in words]
    first = 0
    for batch in file.iter_batches(_BATCH, columns=others):
        rows = slice(first, first + batch.num_rows)
        first = rows.stop
        columns = []
        for field in schema:
            if field.name in words:
                codes, dictionary = words[field.name]
                columns.append(pa.DictionaryArray.from_arrays(codes[rows].cast(pa.int32()), dictionary, safe=False))
            else:
                columns.append(conform_column(pa.Table.from_batches([batch]), field).combine_chunks())
        yield pa.record_batch(columns, schema=schema)


def _words(file: pq.ParquetFile, field: pa.Field) -> tuple[pa.Array, pa.Array]:
    """Codes and dictionary of a whole column: an Arrow file has one dictionary for all its batches."""
    column = conform_column(file.read([field.name]), field).unify_dictionaries()
    dictionary = column.chunk(0).dictionary
    narrow = pa.from_numpy_dtype(np.min_scalar_type(len(dictionary)))  # a byte a row for most columns, not four
    return pa.concat_arrays([chunk.indices.cast(narrow) for chunk in column.chunks]), dictionary


MANIFEST_VERSION = "1.0"
_METADATA_KEY = b"vivid_monai"
_ROW_GROUP = 1 << 17


class Manifest:
    """A validated table of images: columns as in docs/data.md, states int8 (absent 0, present 1, uncertain 2, null −1).

    Args:
        table: the columns of `manifest_schema`; optional ones may be absent.
        label_space: name, path or JSON object of the label space; its fields are the manifest's fields.
        image_root: folder that relative image paths start from.
        splits: how the splits came about (salt, fractions, official lists), for the record.
        sources: the files it was read from, with their hashes.
        card: the data card.

    Attributes:
        path: the file it was read from; a list: it is the union of these; None: from none.
        stored_space: name or content of the label space, as the file holds it.

    Raises:
        VividError: a column missing or of the wrong kind; as :func:`check_rows`.
    """

    def __init__(
        self,
        table: pa.Table,
        *,
        label_space: LabelSpaceSource,
        image_root: Path | str,
        splits: dict[str, Any] | None = None,
        sources: Sequence[dict[str, Any]] = (),
        card: dict[str, Any] | None = None,
        _checked: bool = False,
    ) -> None:
        self.path: Path | list[Path] | None = None
        self._file: ArrowFile | None = None
        self.stored_space = stored_label_space(label_space)
        self.label_space: LabelSpace = open_label_space(self.stored_space)
        self.image_root = Path(image_root)
        self.splits = dict(splits or {})
        self.sources = list(sources)
        self.card = dict(card or {})
        self.table: pa.Table = table if _checked else conform(table, self.fields).unify_dictionaries()
        if not _checked:
            check_rows(self.table, self.fields)

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the label space, in order."""
        return self.label_space.fields

    @property
    def folder(self) -> Path:
        """The folder of the file it was read from, of several of the first."""
        if self.path is None:
            raise VividError("the manifest was read from no file, so that it has no folder: save it first")
        return (self.path[0] if isinstance(self.path, list) else self.path).parent

    @classmethod
    def load(cls, path: Path | str, *, image_root: Path | str | None = None) -> Self:
        """Read a manifest and check it (patients disjoint between splits included).

        Args:
            image_root: where the images are now, if they have moved since the manifest was written.

        Raises:
            VividError: no such file, not Parquet, not a manifest of ours, or one that breaks a rule of the class.
        """
        path = Path(path)
        if not path.exists():
            raise VividError(
                f"{path}: no such manifest; make it with `vivid prepare`, or say where it is: --manifest FILE, or "
                "--dataset_dir FOLDER"
            )
        try:
            arrow = arrow_file_of(path)  # before it is opened: what replaces it meanwhile has another key
            with pq.ParquetFile(path, memory_map=True) as file:
                return cls._read(file, path, arrow, image_root)
        except (OSError, pa.ArrowException) as error:
            raise VividError(f"{path}: not a readable Parquet file: {first_line(error)}") from error

    @classmethod
    def _read(cls, file: pq.ParquetFile, path: Path, arrow: ArrowFile, image_root: Path | str | None) -> Self:
        raw = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
        if raw is None:
            raise VividError(f"{path}: Parquet, but not a manifest: make one with `vivid prepare`")
        meta = json.loads(raw)
        version = meta.pop("manifest_version", None)
        if version != MANIFEST_VERSION:
            raise VividError(
                f"{path}: manifest version {version!r}, this package reads {MANIFEST_VERSION!r}: prepare it again"
            )
        meta["image_root"] = path.parent / meta["image_root"] if image_root is None else Path(image_root)
        mapped = None
        try:
            if file.metadata.num_rows >= MAPPED_FROM:
                schema = manifest_schema(fields := open_label_space(meta["label_space"]).fields)
                mapped = arrow.open_or_make(schema, _batches(file, schema), lambda made: check_rows(made, fields))
            manifest = cls(file.read() if mapped is None else mapped, **meta, _checked=mapped is not None)
        except VividError as error:
            raise type(error)(f"{path}: {error}") from error
        manifest.path, manifest._file = path, None if mapped is None else arrow
        return manifest

    def save(self, path: Path | str) -> Path:
        """Write the Parquet file whole or not at all. An image root inside its folder is stored relative to it."""
        path = Path(path)
        assert_disjoint(self.table["patient_id"], self.table["split"], where="manifest")
        meta = {
            "manifest_version": MANIFEST_VERSION,
            "label_space": self.stored_space,
            "image_root": _portable(self.image_root, path.parent),
            "splits": self.splits,
            "sources": self.sources,
            "card": self.card,
        }
        encoded = json.dumps(meta, ensure_ascii=False).encode()
        with whole_file(path) as temporary:
            table = self.table.replace_schema_metadata({_METADATA_KEY: encoded})
            pq.write_table(table, temporary, compression="zstd", row_group_size=_ROW_GROUP)
        return path

    def to_jsonl(self, path: Path | str) -> Path:
        """Write every row as a UMS record, one line of JSON each, whole or not at all."""
        bar = {"total": len(self), "desc": "records", "unit": "record", "disable": len(self) < 10_000}
        with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.writelines(record.to_json() + "\n" for record in progress(self.records(), **bar))
        return Path(path)

    def records(self) -> Iterator[Record]:
        """Every row as a UMS record, in order."""
        for batch in self.table.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                yield record_of(row, self.label_space)

    def select(self, split: str) -> Self:
        """The rows of one split ("train", "val", "test"). Where it has none, a VividError tells which there are."""
        counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(self.table["split"]).to_pylist()}
        if split not in counts:
            there = ", ".join(f"{name} ({counts[name]} images)" for name in SPLITS if name in counts)
            raise VividError(f"split {split!r} is empty; the manifest has {there}")
        part = copy(self)
        if len(counts) == 1:
            return part
        if self._file is not None:  # mapped as well, from a file beside that of all rows
            part._file = ArrowFile(self._file.path.with_suffix(f".{split}.arrow"), self._file.key)
            rows = (batch.filter(pc.equal(batch["split"], split)) for batch in self.table.to_batches())
            if (mapped := part._file.open_or_make(self.table.schema, rows)) is not None:
                part.table = mapped
                return part
        part.table, part._file = self.table.filter(pc.equal(self.table["split"], split)), None
        return part

    def states(self, fields: Sequence[str] | None = None) -> np.ndarray:
        """States int8 (N, F) in the order of ``fields`` (default: all): absent 0, present 1, uncertain 2, null −1."""
        names = self._canonical(self.fields if fields is None else fields)
        out = np.empty((len(self), len(names)), dtype=np.int8)
        for position, name in enumerate(names):
            out[:, position] = self.table[FINDING + name].to_numpy()
        return out

    def patients(self) -> np.ndarray:
        """Patient ids, str (N,)."""
        return np.asarray(self.table["patient_id"].to_pylist(), dtype=str)

    def datasets(self) -> np.ndarray:
        """Name of the data set of every row, str as objects (N,)."""
        codes = self.table["dataset"].combine_chunks()
        names = np.array(codes.dictionary.to_pylist(), dtype=object)
        return names[codes.indices.to_numpy()]

    def places(self) -> list[tuple[str, int | None]]:
        """File and slice of every row: the same image under two names is found by where it lies."""
        root = os.path.abspath(self.image_root)
        files = (os.path.normpath(os.path.join(root, image)) for image in self.table["image"].to_pylist())
        return list(zip(files, self.table["slice"].to_pylist(), strict=True))

    def fields_with(self, min_present: int = 20, split: str | None = None, *, min_absent: int = 0) -> list[str]:
        """Fields present at least ``min_present`` and absent at least ``min_absent`` times, in one split or in all.

        Raises:
            VividError: there is no such field.
        """
        part = self if split is None else self.select(split)
        columns = [part.table[name].to_numpy() for name in state_columns(self.fields)]
        present, absent = (np.array([np.sum(column == state) for column in columns]) for state in (PRESENT, ABSENT))
        enough = (present >= min_present) & (absent >= min_absent)
        if not enough.any():
            counts = zip(self.fields, present, absent, strict=True)
            most = "; ".join(f"{field}: {n_present} and {n_absent}" for field, n_present, n_absent in counts)
            raise VividError(
                f"no field is present at least {min_present} and absent at least {min_absent} times ({most}); lower "
                "the minimum (--min_positives) or prepare more data"
            )
        return [field for field, kept in zip(self.fields, enough, strict=True) if kept]

    def items(self, fields: Sequence[str] | None = None, *, columns: Sequence[str] = ()) -> Items:
        """For data sets: image (absolute path), states int64 (F,), id, patient_id and, where there is one, slice.

        Args:
            fields: whose states, in this order; None: all fields of the label space.
            columns: further columns of the manifest that targets need: boxes, mask (absolute path), report, …
        """
        if unknown := [name for name in columns if name not in self.table.column_names]:
            raise VividError(f"the manifest has no column {unknown[0]!r}; it has {', '.join(self.table.column_names)}")
        states = state_columns(self._canonical(self.fields if fields is None else fields))
        root = str(self.image_root.absolute())
        return Items(self.table, states, root=root, columns=columns, file=self._file)

    def _canonical(self, fields: Sequence[str]) -> list[str]:
        return [self.label_space.resolve(name) for name in fields]


def _portable(root: Path, folder: Path) -> str:
    """The image root as stored: relative where it is inside the manifest's folder, so that both can move together."""
    root, folder = root.absolute(), folder.absolute()
    return root.relative_to(folder).as_posix() if root.is_relative_to(folder) else str(root)
