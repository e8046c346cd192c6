"""A large manifest's columns, mapped from an Arrow file that is made of its Parquet file, row group by row group."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vivid_monai import __version__
from vivid_monai.data.arrow_file import ArrowFile
from vivid_monai.data.checks import check_rows
from vivid_monai.data.columns import WORD, conform_column, manifest_schema

MAPPED_FROM = 1_000_000
"""Rows from which a manifest is mapped: a smaller one takes under 0.5 GB in memory."""

_BATCH = 1 << 17


def arrow_file_of(path: Path) -> ArrowFile:
    """The Arrow file of a Parquet file as it is now: beside it, `.arrow` after its name."""
    status = path.stat()
    # A file replaced in place changes its ctime even where size and modification time are kept.
    key = [__version__, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return ArrowFile(path.with_name(f"{path.name}.arrow"), json.dumps(key))


def mapped_rows(file: pq.ParquetFile, fields: tuple[str, ...], arrow: ArrowFile) -> pa.Table | None:
    """The rows of a Parquet file in `manifest_schema`, mapped; checked by `check_rows` when the Arrow file is made.

    None, told on stderr: the Arrow file cannot be written.

    Raises:
        VividError: as `conform` and `check_rows`.
    """
    schema = manifest_schema(fields)
    return arrow.open_or_make(schema, _batches(file, schema), lambda made: check_rows(made, fields))


def mapped_split(table: pa.Table, split: str, arrow: ArrowFile) -> tuple[pa.Table, ArrowFile] | None:
    """The rows of one split, mapped from a file of their own beside that of the whole `table`.

    None, told on stderr: it cannot be written.
    """
    own = ArrowFile(arrow.path.with_suffix(f".{split}.arrow"), arrow.key)
    rows = (batch.filter(pc.equal(batch["split"], split)) for batch in table.to_batches())
    made = own.open_or_make(table.schema, rows)
    return None if made is None else (made, own)


def _batches(file: pq.ParquetFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
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
