"""What makes the rows of a manifest wrong."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.data.columns import state_columns
from vivid_monai.data.splits import SPLITS, assert_disjoint
from vivid_monai.errors import VividError
from vivid_monai.ums.states import NULL, UNCERTAIN


def check_rows(table: pa.Table, fields: Sequence[str]) -> None:
    """Look at a table of `manifest_schema` with unified dictionaries, in some tens of bytes for each row.

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
