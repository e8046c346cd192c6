"""NIH's boxes, brought from their 1024×1024 frame into that of the image files."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from vivid_monai.data.columns import BOXES
from vivid_monai.data.sources.rows import KEY, Rows
from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace, load_label_space

BOX_TABLE = "BBox_List_2017.csv"
FRAME = 1024
"""Side of the square images that NIH distributes and that the boxes were drawn on, in pixels."""


def read_boxes(path: Path) -> list[tuple[str, str, tuple[float, float, float, float]]]:
    """(image name, concept, (x, y, width, height)) in the 1024 frame.

    The header as distributed has more cells than the rows; so only the order counts.

    Raises:
        VividError: not such a table; a row with an unknown finding or a cell that is no number.
    """
    native = load_label_space("nih-14")
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise VividError(f"{path}: cannot be read as text: {error}") from error
    if not lines or lines[0][:2] != ["Image Index", "Finding Label"]:
        raise VividError(f"{path}: its first columns must be 'Image Index' and 'Finding Label'")
    boxes = []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cells):
            continue
        try:
            x, y, width, height = (float(cell) for cell in cells[2:6])
            boxes.append((cells[0], native.concepts[native.resolve(cells[1])], (x, y, width, height)))
        except (ValueError, IndexError) as error:  # a VividError is a ValueError, too: an unknown finding
            raise VividError(f"{path}: row {number}: not image, finding, x, y, width, height: {error}") from error
    return boxes


def add_boxes(rows: Rows, root: Path, space: LabelSpace, *, find_files: bool) -> None:
    """Give ``rows`` the column ``boxes``, in pixels of the image file, and ``height`` and ``width`` with them.

    An image that has boxes and cannot be opened is dropped (reason "unreadable-image"); a missing one is left to the
    file check.
    """
    fields = {concept: field for field, concept in space.concepts.items()}
    place = {name: position for position, name in enumerate(rows.table[KEY].to_pylist())}
    n = rows.table.num_rows
    boxes: list[list[dict[str, Any]] | None] = [None] * n
    sizes: dict[int, tuple[int, int]] = {}
    broken: dict[int, str] = {}
    left_out = 0
    for name, concept, (x, y, width, height) in read_boxes(root / BOX_TABLE):
        position, field = place.get(name), fields.get(concept)
        if position is None or field is None:
            left_out += 1
            continue
        try:
            path = root / rows.table["image"][position].as_py()
            if position not in sizes:
                sizes[position] = _size(path) if find_files else (FRAME, FRAME)
        except OSError as error:
            broken[position] = str(error)
            continue
        across, down = sizes[position][0] / FRAME, sizes[position][1] / FRAME
        scaled = {"x": x * across, "y": y * down, "width": width * across, "height": height * down, "slice": None}
        boxes[position] = [*(boxes[position] or []), {"field": field, **scaled}]
    across_down = [sizes.get(position, (None, None)) for position in range(n)]
    rows.table = (
        rows.table.append_column("boxes", pa.array(boxes, BOXES))
        .append_column("width", pa.array([w for w, _ in across_down], pa.int32()))
        .append_column("height", pa.array([h for _, h in across_down], pa.int32()))
    )
    mask = np.zeros(n, dtype=bool)
    mask[list(broken)] = True
    rows.drop(mask, "unreadable-image", [broken[position] for position in np.flatnonzero(mask).tolist()])
    resized = sum(size != (FRAME, FRAME) for size in sizes.values())
    frame = f"pixels of the image files; {resized} of them are not {FRAME}×{FRAME}, their boxes are scaled"
    rows.notes.append(f"Boxes on {len(sizes)} images, in {frame if find_files else f'the {FRAME}×{FRAME} frame'}.")
    if left_out:
        rows.notes.append(f"{left_out} boxes are on images or findings that are not in this manifest.")


def _size(path: Path) -> tuple[int, int]:
    """Width and height from the file's header; the frame's where there is no file."""
    if not path.is_file():
        return FRAME, FRAME
    with Image.open(path) as image:
        return image.size
