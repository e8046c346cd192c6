"""Are the images there, and can they be read?"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from vivid_monai.images.read import ImageError, read_image
from vivid_monai.prepare.csv_table import distinct
from vivid_monai.prepare.source import KEY, ROW, TABLE, Rows

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


Check = Literal["none", "files", "images"]
CHECKS: tuple[Check, ...] = ("none", "files", "images")
_CHUNK = 256


def check_images(rows: Rows, root: Path, *, check: Check, workers: int) -> None:
    """Drop rows without a usable image file.

    Args:
        root: folder that relative image paths start from.
        check: "none" looks at nothing; "files" whether the file is there and not empty (reason "missing-file");
            "images" reads each image (reason "unreadable-image") and sets ``height`` and ``width``.
        workers: processes that read images; for "files", threads.
    """
    if check == "none":
        return
    paths = [os.path.join(root, image) for image in rows.table["image"].to_pylist()]
    n = len(paths)
    if check == "files":
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            told = list(_run(pool, _missing, paths, n, "looking for files"))
        _drop(rows, told, "missing-file")
        return
    slices = rows.table["slice"].to_pylist() if "slice" in rows.table.column_names else [None] * n
    with ProcessPoolExecutor(max(workers, 1)) as pool:
        found = list(_run(pool, _read, zip(paths, slices, strict=True), n, "reading images"))
    sizes = [answer if isinstance(answer, tuple) else (None, None) for answer in found]
    for position, name in enumerate(("height", "width")):
        column = pa.array([size[position] for size in sizes], pa.int32())
        kept = rows.table.drop_columns([name]) if name in rows.table.column_names else rows.table
        rows.table = kept.append_column(name, column)
    _drop(rows, [answer if isinstance(answer, str) else None for answer in found], "unreadable-image")


def _run(pool: Executor, call: Callable[[Any], Any], tasks: Iterable[Any], n: int, title: str) -> Iterator[Any]:
    answers = pool.map(call, tasks, chunksize=_CHUNK if n > 8 * _CHUNK else 16)
    return iter(tqdm(answers, total=n, desc=title, unit="image", disable=n < 2000))


def _missing(path: str) -> str | None:
    try:
        return None if os.stat(path).st_size else f"{path}: the file is empty"
    except OSError as error:
        return f"{path}: {error.strerror}"


def _read(task: tuple[str, int | None]) -> tuple[int, int] | str:
    path, place = task
    try:
        _, height, width = read_image(path, slice=place).shape
    except ImageError as error:
        return str(error)
    return height, width


def _drop(rows: Rows, told: list[str | None], reason: str) -> None:
    details = [problem for problem in told if problem is not None]
    rows.drop(np.array([problem is not None for problem in told], dtype=bool), reason, details)
