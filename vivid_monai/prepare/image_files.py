"""Drop rows that repeat an image, or whose image is missing, cannot be read or shows nothing."""

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from vivid_monai.images.raster import NARROW, announce
from vivid_monai.images.read import ImageError, read_image
from vivid_monai.logs import progress
from vivid_monai.prepare.source import KEY, ROW, TABLE, Rows, differing

Check = Literal["none", "files", "images"]
CHECKS: tuple[Check, ...] = ("none", "files", "images")
_BATCH = 256
"""Images in one task of a process. Fewer images than this are read here: starting processes takes longer."""

_LEAST_SIDE = 8  # pixels
_NEARLY_BLACK = 1 / 16


class _Seen(NamedTuple):
    """What reading an image told: its size, or why its row is dropped; and what is `NARROW` in the process."""

    size: tuple[int, int] | None
    problem: tuple[str, str] | None
    narrow: tuple[int, ...]


def drop_duplicates(rows: Rows) -> list[int]:
    """Drop repeated rows: a "duplicate" agrees with the first, which stays; of a "conflicting-duplicate" all go.

    Rows are about the same image where the columns ``rows.about`` are equal.
    Returns the index labels of the duplicates.
    """
    table = rows.table
    same = [name for name in rows.about if name in table]
    content = [name for name in table if name not in (TABLE, ROW, KEY, "id")]
    several = table[table.duplicated(same, keep=False)]
    group = several.groupby(same, sort=False, dropna=False).ngroup()
    differ = differing(several, content, group)
    odd = differ.any(axis=1)
    again = several[~odd & group.duplicated()]
    firsts = several[ROW].groupby(group).transform("first")
    problems = {row: ("duplicate", f"says what row {firsts[row]} says") for row in again.index}
    for _, image in several[odd].groupby(group[odd]):
        names = differ.columns[differ.loc[image.index[0]]]
        detail = f"rows {', '.join(map(str, image[ROW]))} of this image differ in {', '.join(names)}"
        problems |= dict.fromkeys(image.index, ("conflicting-duplicate", detail))
    rows.drop_each(problems)
    return list(again.index)


def check_images(rows: Rows, root: Path, *, check: Check, workers: int) -> None:
    """Drop rows without a usable image file.

    Args:
        root: folder that relative image paths start from.
        check: "none" looks at nothing; "files" whether the file is there and not empty (reason "missing-file");
            "images" reads each image (reason "unreadable-image", or "blank-image" of one that is black, nearly
            black, all of one grey or under 8 pixels wide or high) and sets ``height`` and ``width``.
        workers: processes that read images; for "files", threads.
    """
    if check == "none":
        return
    table = rows.table
    paths = [os.path.join(root, image) for image in table["image"]]
    if check == "files":
        found = _run(_missing, [(path,) for path in paths], workers, "threads", "looking for files")
        rows.drop_each({row: ("missing-file", why) for row, why in zip(table.index, found, strict=True) if why})
        return
    slices = [None if pd.isna(at) else int(at) for at in table["slice"]] if "slice" in table else [None] * len(paths)
    # Processes are started anew: a fork of this one would inherit the locks of torch's and Arrow's threads.
    tasks = list(zip(paths, slices, strict=True))
    found = _run(_read, tasks, workers if len(paths) >= _BATCH else 1, "processes", "reading images")
    for (path, _), seen in zip(tasks, found, strict=True):
        for bits in seen.narrow:
            announce(bits, path)
    sizes = [seen.size or (None, None) for seen in found]
    height, width = (pd.array([size[axis] for size in sizes], "Int32") for axis in (0, 1))
    rows.table = table.assign(height=height, width=width)
    rows.drop_each({row: seen.problem for row, seen in zip(table.index, found, strict=True) if seen.problem})


def _run(
    call: Callable[..., Any], tasks: Sequence[tuple], workers: int, prefer: Literal["threads", "processes"], title: str
) -> list[Any]:
    work = Parallel(n_jobs=workers, prefer=prefer, batch_size=_BATCH, return_as="generator")
    answers = work(delayed(call)(*task) for task in tasks)
    return list(progress(answers, total=len(tasks), desc=title, unit="image", disable=len(tasks) < 2000))


def _missing(path: str) -> str | None:
    try:
        found = os.stat(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):
        return f"{path}: is no regular file"
    return None if found.st_size else f"{path}: the file is empty"


def _read(path: str, place: int | None) -> _Seen:
    size, problem = None, None
    try:
        (pixels,) = read_image(path, slice=place)
        size = pixels.shape
        if blank := _blank(pixels):
            problem = "blank-image", f"{path}: {blank}"
    except ImageError as error:
        problem = "unreadable-image", str(error)
    return _Seen(size, problem, tuple(bits for bits in range(len(NARROW)) if NARROW[bits]))


def _blank(pixels: np.ndarray) -> str | None:
    """Why an image (H, W) in [0, 1] shows nothing."""
    if min(pixels.shape) < _LEAST_SIDE:
        return f"has {pixels.shape[1]} x {pixels.shape[0]} pixels"
    if pixels.max() - pixels.min() < 1 / 255:
        return "is black" if pixels.max() < 1 / 255 else "is of one grey"
    if np.count_nonzero(pixels >= _NEARLY_BLACK) < pixels.size / 1000:
        return "is nearly black: 99.9 % of its pixels are below 1/16 of white"
    return None
