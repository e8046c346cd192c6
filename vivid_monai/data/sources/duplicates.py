"""Rows about the same image: one is kept where they agree, none where they do not."""

from collections import defaultdict

import numpy as np

from vivid_monai.data.sources.cells import distinct
from vivid_monai.data.sources.rows import KEY, ROW, TABLE, Rows

_NOT_CONTENT = (TABLE, ROW, KEY, "id")


def drop_duplicates(rows: Rows) -> None:
    """Drop repeated rows: a "duplicate" agrees with the first, which stays; of a "conflicting-duplicate" all go.

    Rows are about the same image where ``image`` and ``slice`` are equal.
    """
    table = rows.table
    codes, _ = distinct(table["image"])
    if "slice" in table.column_names:
        codes = np.unique(np.stack([codes, table["slice"].fill_null(-1).to_numpy()]), axis=1, return_inverse=True)[1]
    repeated = np.flatnonzero(np.bincount(codes)[codes] > 1)
    if not len(repeated):
        return
    content = table.select([name for name in table.column_names if name not in _NOT_CONTENT])
    groups: dict[int, list[int]] = defaultdict(list)
    for row in repeated.tolist():
        groups[codes[row]].append(row)
    cells = dict(zip(repeated.tolist(), content.take(repeated).to_pylist(), strict=True))
    numbers = dict(zip(repeated.tolist(), table[ROW].take(repeated).to_pylist(), strict=True))

    reason: dict[int, tuple[str, str]] = {}
    for members in groups.values():
        first = cells[members[0]]
        differ = [name for name in first if any(cells[m][name] != first[name] for m in members)]
        if differ:
            told = f"rows {', '.join(str(numbers[m]) for m in members)} of this image differ in {', '.join(differ)}"
            reason |= dict.fromkeys(members, ("conflicting-duplicate", told))
        else:
            reason |= dict.fromkeys(members[1:], ("duplicate", f"says what row {numbers[members[0]]} says"))
    drop_each(rows, reason)


def drop_each(rows: Rows, reason: dict[int, tuple[str, str]]) -> None:
    """Drop rows by position, each for its own (reason, detail)."""
    positions = np.arange(rows.table.num_rows)
    for kind in sorted({kind for kind, _ in reason.values()}):
        chosen = {row: detail for row, (k, detail) in reason.items() if k == kind}
        mask = np.isin(positions, list(chosen))
        rows.drop(mask, kind, [chosen[row] for row in positions[mask].tolist()])
        positions = positions[~mask]
