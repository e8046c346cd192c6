"""Adapter for NIH ChestX-ray14 as distributed, with either version of its table (Wang et al., CVPR 2017)."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from vivid_monai.data.columns import FINDING, LabelSpaceSource, open_label_space, stored_label_space
from vivid_monai.errors import VividError
from vivid_monai.prepare.csv_table import BadCell, CellReader, age_in_years, read_csv
from vivid_monai.prepare.source import KEY, TABLE, Rows, Source
from vivid_monai.ums.label_space import LabelSpace, load_label_space
from vivid_monai.ums.states import ABSENT, NULL, PRESENT

LISTS = {"train_val_list.txt": "train_val", "test_list.txt": "test"}


def read_lists(root: Path) -> dict[str, str]:
    """Image name → "train_val" or "test"; empty where there are no lists.

    Raises:
        VividError: one of the two lists is missing, or an image is in both.
    """
    there = [name for name in LISTS if (root / name).is_file()]
    if not there:
        return {}
    if len(there) < len(LISTS):
        absent = next(name for name in LISTS if name not in there)
        raise VividError(
            f"{root / there[0]} is there, but not {absent}: the official split needs both lists, or neither"
        )
    sides: dict[str, str] = {}
    for name, side in LISTS.items():
        try:
            lines = (root / name).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise VividError(f"{root / name}: cannot be read as text: {error}") from error
        both = [image for image in lines if sides.get(image, side) != side]
        if both:
            raise VividError(f"{root}: {len(both)} image(s) are in both official lists: {', '.join(both[:5])}")
        sides |= dict.fromkeys(lines, side)
    return sides


def image_folders(root: Path) -> dict[str, str]:
    """File name → its folder below ``root``: ``images_001/images`` …, ``images_001`` … or ``images``.

    Raises:
        VividError: no such folder, or a name in two of them.
    """
    numbered = sorted(root.glob("images_*"))
    candidates = [root / "images", *(folder / "images" for folder in numbered), *numbered]
    folders = [folder for folder in candidates if folder.is_dir()]
    if not folders:
        raise VividError(
            f"{root}: neither images_001/images … nor images is here; unpack the images, or pass --check none"
        )
    home: dict[str, str] = {}
    for folder in folders:
        place = folder.relative_to(root).as_posix()
        for entry in folder.iterdir():
            if entry.suffix == ".png" and home.setdefault(entry.name, place) != place:
                raise VividError(f"{entry.name} is in {home[entry.name]} and in {place} of {root}: keep one")
    return home


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
    index = pd.Series(rows.table.index, rows.table[KEY])
    boxes: dict[int, list[dict[str, Any]]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    broken: dict[int, tuple[str, str]] = {}
    left_out = 0
    for name, concept, (x, y, width, height) in read_boxes(root / BOX_TABLE):
        if name not in index or concept not in fields:
            left_out += 1
            continue
        row = index[name]
        try:
            if row not in sizes:
                sizes[row] = _size(root / rows.table.at[row, "image"]) if find_files else (FRAME, FRAME)
        except OSError as error:
            broken[row] = ("unreadable-image", str(error))
            continue
        across, down = sizes[row][0] / FRAME, sizes[row][1] / FRAME
        scaled = {"x": x * across, "y": y * down, "width": width * across, "height": height * down}
        boxes.setdefault(row, []).append({"field": fields[concept], **scaled})
    rows.table = rows.table.assign(
        boxes=pd.Series(boxes, dtype=object),
        width=pd.Series({row: width for row, (width, _) in sizes.items()}, dtype="Int32"),
        height=pd.Series({row: height for row, (_, height) in sizes.items()}, dtype="Int32"),
    )
    rows.drop_each(broken)
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


TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_NO_FINDING = "no-finding"
_NAME = r"[0-9]{8}_[0-9]{3}\.png"
_VIEWS = {"PA": "PA", "AP": "AP", "": None}
_SEX = {"M": "M", "F": "F", "": None}
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
POLICY = (
    "A finding that is listed is present, one that is not is absent; 'No Finding' makes all absent. Labels were mined "
    "from reports. Fields of the label space that ChestX-ray14 did not look for are null."
)


def read(root: Path | str, *, label_space: LabelSpaceSource = "nih-14", find_files: bool = True) -> Source:
    """Read the table under ``root``, with the official lists and the boxes where they are there.

    test_list.txt is test; the patients of train_val_list.txt are drawn into train and val. Without the lists all three
    splits are drawn. Boxes come out in pixels of the image file that is there: the table gives them for 1024×1024.

    Args:
        root: folder with Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv) and ``images_001/images`` … or ``images``.
        label_space: any space that shares concepts with nih-14.
        find_files: look which folder holds each image; off, paths read ``images/NAME`` and boxes keep their 1024 frame.

    Raises:
        VividError: no table, one of two lists missing, an image in both lists, a box of an unknown finding.
    """
    root = Path(root)
    path = next((root / name for name in TABLES if (root / name).is_file()), None)
    if path is None:
        raise VividError(f"{root}: neither {' nor '.join(TABLES)} is here: give the folder that holds the table")
    space = open_label_space(stored_label_space(label_space))
    rows = read_csv(path, required=_COLUMNS, key="Image Index")
    rows.drop(~rows.table["Image Index"].str.fullmatch(_NAME), "bad-path", "not NNNNNNNN_NNN.png")
    files = [path]
    lists = read_lists(root)
    if lists:
        files += [root / name for name in LISTS]
    _parse(rows, space, image_folders(root) if find_files else None, lists)
    if (root / BOX_TABLE).is_file():
        files.append(root / BOX_TABLE)
        add_boxes(rows, root, space, find_files=find_files)
    if not find_files:
        rows.notes.append("Images were not looked for: paths read images/NAME, wherever the files are.")
    return Source(
        dataset="nih-chestxray14",
        rows=rows,
        label_space=label_space,
        image_root=root,
        files=files,
        official=frozenset({"test"} if lists else ()),
        label_policy=POLICY,
        test=0.0 if lists else 0.2,
    )


def _parse(rows: Rows, space: LabelSpace, folders: dict[str, str] | None, lists: dict[str, str]) -> None:
    table, names = rows.table, rows.table["Image Index"]
    cells = CellReader(rows)
    columns = {
        "id": names.str.removesuffix(".png"),
        "image": (names.map(folders or {}).astype(object).fillna("images") + "/" + names).astype("str"),
        "patient_id": cells.read("Patient ID", _patient, "category"),
        "study_id": None,
        "view": cells.read("View Position", _VIEWS, "category"),
        "sex": cells.read("Patient Gender", _SEX, "category"),
        "age": cells.read("Patient Age", age_in_years, "float64"),
        "dataset": "nih-chestxray14",
        "modality": "DX",
        "anatomy": "chest",
        "labeller": "NIH text mining",
        "labeller_version": "2020" if any("v2020" in name for name in table[TABLE].cat.categories) else "2017",
        "source": "report",
        **_states(cells, space),
    }
    official = names.map(lists).astype(object)
    columns["split"] = official.where(official == "test", None).astype("category")
    cells.finish(columns)
    if lists:
        unlisted = official.loc[rows.table.index].isna()
        rows.drop(unlisted, "not-in-lists", "in neither train_val_list.txt nor test_list.txt")
    rows.drop(
        rows.table[KEY].str[:8] != rows.table["patient_id"].astype(object),
        "patient-mismatch",
        "the file name and the column 'Patient ID' name different patients",
    )


def _patient(text: str) -> str:
    if not text.isdecimal():
        raise BadCell("a number")
    return text.zfill(8)


def _states(cells: CellReader, space: LabelSpace) -> dict[str, np.ndarray]:
    """The state columns: listed is present, unlisted absent, a concept that ChestX-ray14 does not have null."""
    native = load_label_space("nih-14")
    none_label = native.none_label

    def listed(text: str) -> frozenset[str]:
        labels = text.split("|")
        if labels == [none_label]:
            return frozenset({_NO_FINDING})
        if none_label in labels:
            raise BadCell(f"findings, or {none_label!r} alone")
        try:
            return frozenset(native.concepts[native.resolve(label)] for label in labels)
        except VividError as error:
            raise BadCell(f"a list of findings with '|' between them ({error})") from None

    known = {*native.concepts.values(), _NO_FINDING}
    if not any(space.concepts.get(field) in known for field in space.fields):
        raise VividError(f"label space {space.name!r} shares no concept with nih-14")
    codes, sets = cells.distinct("Finding Labels", listed, bad=frozenset())
    columns = {}
    for field in space.fields:
        concept = space.concepts.get(field)
        states = [PRESENT if concept in s else ABSENT for s in sets] if concept in known else [NULL] * len(sets)
        columns[FINDING + field] = np.array(states, np.int8)[codes]
    return columns
