"""Adapter for NIH ChestX-ray14 as distributed, with either version of its table (Wang et al., CVPR 2017)."""

import csv
import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from vivid_monai.data.columns import LabelSpaceSource, open_label_space, stored_label_space
from vivid_monai.errors import VividError
from vivid_monai.prepare.cells import age_in_years
from vivid_monai.prepare.csv_table import read_csv
from vivid_monai.prepare.source import KEY, BadCell, Rows, Source
from vivid_monai.ums.label_space import NO_FINDING, LabelSpace, load_label_space
from vivid_monai.ums.states import ABSENT, NULL

TABLES = {"Data_Entry_2017_v2020.csv": "2020", "Data_Entry_2017.csv": "2017"}
_LIST = re.compile(r"(?P<side>train[_-]?val|test)[_-]?list.*\.txt", re.IGNORECASE)
_SUFFIXES = (".png", ".jpg", ".jpeg")
BOX_TABLE = "BBox_List_2017.csv"
FRAME = 1024
"""Side of the square images that NIH distributes and that the boxes were drawn on, in pixels."""

_VIEWS = {"PA": "PA", "AP": "AP", "": None}
_SEX = {"M": "M", "F": "F", "": None}
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
POLICY = (
    "A finding that is listed is present, one that is not is absent; 'No Finding' makes all absent. Labels were mined "
    "from reports. Fields of the label space that ChestX-ray14 did not look for are null."
)


def read(root: Path | str, *, label_space: LabelSpaceSource = "nih-14", find_files: bool = True) -> Source:
    """Read the table under ``root``, with the official lists and the boxes where they are there.

    test_list.txt is test; the patients of train_val_list.txt are drawn into train and val; names such as
    test_list_NIH.txt, and images of another suffix, are understood. Without the lists all three splits are drawn.
    Boxes come out in pixels of the image file that is there: the table gives them for 1024×1024.

    Args:
        root: folder with Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv) and ``images_001/images`` … or ``images``.
        label_space: any space that shares concepts with nih-14.
        find_files: look which folder holds each image; off, paths read ``images/NAME`` and boxes keep their 1024 frame.

    Raises VividError: no table, one of two lists missing, an image in both lists, a box of an unknown finding.
    """
    root = Path(root)
    path = next((root / name for name in TABLES if (root / name).is_file()), None)
    if path is None:
        raise VividError(f"{root}: neither {' nor '.join(TABLES)} is here: give the folder that holds the table")
    space = open_label_space(stored_label_space(label_space))
    rows = read_csv(path, required=_COLUMNS, key="Image Index")
    rows.private = frozenset({"Patient ID"})
    named = rows.table[KEY].str.fullmatch(r"[0-9]{8}_[0-9]{3}\.(?i:png|jpe?g)")
    rows.drop(~named, "bad-path", "not NNNNNNNN_NNN.png (or .jpg)")
    lists = _find_lists(root)
    names, stems = rows.table[KEY], rows.table[KEY].str.replace(r"\.[^.]*$", "", regex=True)
    files = _image_files(root) if find_files else {}
    official = stems.map(_read_lists(lists)).astype(object)
    columns = {
        "id": stems,
        "image": stems.map(files).astype(object).fillna("images/" + names).astype("str"),
        "patient_id": rows.read("Patient ID", _patient, "category"),
        "split": official.where(official == "test", None).astype("category"),
        "view": rows.read("View Position", _VIEWS, "category"),
        "sex": rows.read("Patient Gender", _SEX, "category"),
        "age": rows.read("Patient Age", age_in_years, "float64"),
        "dataset": "nih-chestxray14",
        "modality": "DX",
        "anatomy": "chest",
        "labeller": "NIH text mining",
        "labeller_version": TABLES[path.name],
        "source": "report",
    }
    rows.finish(columns | _states(rows, space))
    if lists:
        unlisted = official.loc[rows.table.index].isna()
        rows.drop(unlisted, "not-in-lists", "in neither of the official lists")
    other = rows.table[KEY].str[:8] != rows.table["patient_id"].astype(object)
    rows.drop(other, "patient-mismatch", "the file name and the column 'Patient ID' name different patients")
    sources = [path, *lists.values()]
    if (root / BOX_TABLE).is_file():
        sources.append(root / BOX_TABLE)
        _add_boxes(rows, root, space, find_files=find_files)
    if not find_files:
        rows.notes.append("Images were not looked for: paths read images/NAME, wherever the files are.")
    return Source(
        dataset="nih-chestxray14",
        rows=rows,
        label_space=label_space,
        image_root=root,
        files=sources,
        official=frozenset({"test"} if lists else ()),
        open_is="train" if lists else None,
        label_policy=POLICY,
        test=0.0 if lists else 0.2,
    )


def _find_lists(root: Path) -> dict[str, Path]:
    """Side → its list, under any name in use, such as test_list_NIH.txt; beside the table or in a folder there."""
    found: dict[str, Path] = {}
    for path in (*sorted(root.glob("*.[tT][xX][tT]")), *sorted(root.glob("*/*.[tT][xX][tT]"))):
        if (said := _LIST.fullmatch(path.name)) and path.is_file():
            side = "test" if said["side"].lower() == "test" else "train_val"
            if (first := found.setdefault(side, path)) is not path and first.read_bytes() != path.read_bytes():
                names = f"{first.relative_to(root)} and {path.relative_to(root)}"
                raise VividError(f"{root}: {names} differ, both lists of {side}: keep the right one")
    if len(found) == 1:
        (there,) = found.values()
        (absent,) = {"test", "train_val"} - found.keys()
        raise VividError(
            f"{there} is there, but not {absent}_list.txt: the official split needs both lists, or neither"
        )
    return found


def _read_lists(lists: dict[str, Path]) -> dict[str, str]:
    """Image name without its suffix → "train_val" or "test"; empty where there are no lists."""
    sides: dict[str, str] = {}
    for side, path in lists.items():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise VividError(f"{path}: cannot be read as text: {error}") from error
        images = [PurePosixPath(line.split()[0].replace("\\", "/")).stem for line in lines if line.strip()]
        if both := [image for image in images if sides.get(image, side) != side]:
            raise VividError(f"{path.parent}: {len(both)} image(s) are in both official lists: {', '.join(both[:5])}")
        sides |= dict.fromkeys(images, side)
    return sides


def _image_files(root: Path) -> dict[str, str]:
    """Name without its suffix → the file below ``root``, in ``images_001/images`` …, ``images_001`` … or ``images``."""
    numbered = sorted(root.glob("images_*"))
    candidates = [root / "images", *(folder / "images" for folder in numbered), *numbered]
    folders = [folder for folder in candidates if folder.is_dir()]
    if not folders:
        raise VividError(
            f"{root}: neither images_001/images … nor images is here; unpack the images, or pass --check none"
        )
    files: dict[str, str] = {}
    for folder in folders:
        for entry in folder.iterdir():
            if entry.suffix.lower() in _SUFFIXES:
                place = entry.relative_to(root).as_posix()
                if (first := files.setdefault(entry.stem, place)) != place:
                    raise VividError(f"{root}: {first} and {place} are one image by their names: keep one")
    return files


def _patient(text: str) -> str:
    if not text.isdecimal():
        raise BadCell("a number")
    return text.zfill(8)


def _states(rows: Rows, space: LabelSpace) -> dict[str, np.ndarray]:
    """The state columns: listed is present, unlisted absent, a concept that ChestX-ray14 does not have null."""
    native = load_label_space("nih-14")
    field_of: dict[str, str | None] = {concept: field for field, concept in space.concepts.items()}

    def listed(text: str) -> frozenset[str | None]:
        labels = text.split("|")
        if labels == [native.none_label]:
            return frozenset({field_of.get(NO_FINDING)})
        if native.none_label in labels:
            raise BadCell(f"findings, or {native.none_label!r} alone")
        try:
            return frozenset(field_of.get(native.concepts[native.resolve(label)]) for label in labels)
        except VividError as error:
            raise BadCell(f"a list of findings with '|' between them ({error})") from None

    known = {*native.concepts.values(), NO_FINDING}
    if not known & field_of.keys():
        raise VividError(f"label space {space.name!r} shares no concept with nih-14")
    unlisted = {field: ABSENT if space.concepts.get(field) in known else NULL for field in space.fields}
    return rows.listed(unlisted, "Finding Labels", listed)


def _add_boxes(rows: Rows, root: Path, space: LabelSpace, *, find_files: bool) -> None:
    """Give ``rows`` the column ``boxes``, in pixels of the image file, and ``height`` and ``width`` with them.

    An image that has boxes and cannot be opened is dropped (reason "unreadable-image"); a missing one is left to the
    file check.
    """
    fields = {concept: field for field, concept in space.concepts.items()}
    images = dict(zip(rows.table["id"], rows.table["image"], strict=True))
    boxes: dict[str, list[dict[str, Any]]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    broken: dict[str, str] = {}
    left_out = 0
    for name, concept, (x, y, width, height) in _read_boxes(root / BOX_TABLE):
        if name not in images or concept not in fields:
            left_out += 1
            continue
        if name not in sizes and name not in broken:
            try:
                sizes[name] = _size(root / images[name]) if find_files else (FRAME, FRAME)
            except OSError as error:
                broken[name] = str(error)
        if name in sizes:
            across, down = (side / FRAME for side in sizes[name])
            scaled = {"x": x * across, "y": y * down, "width": width * across, "height": height * down}
            boxes.setdefault(name, []).append({"field": fields[concept], **scaled})
    keys = rows.table["id"].astype(object)
    rows.table = rows.table.assign(
        boxes=keys.map(boxes).astype(object),
        width=keys.map({name: width for name, (width, _) in sizes.items()}).astype("Int32"),
        height=keys.map({name: height for name, (_, height) in sizes.items()}).astype("Int32"),
    )
    rows.drop(keys.isin(broken), "unreadable-image", keys.map(broken))
    resized = sum(size != (FRAME, FRAME) for size in sizes.values())
    frame = f"pixels of the image files; {resized} of them are not {FRAME}×{FRAME}, their boxes are scaled"
    rows.notes.append(f"Boxes on {len(sizes)} images, in {frame if find_files else f'the {FRAME}×{FRAME} frame'}.")
    if left_out:
        rows.notes.append(f"{left_out} boxes are on images or findings that are not in this manifest.")


def _read_boxes(path: Path) -> list[tuple[str, str, tuple[float, float, float, float]]]:
    """(image name without its suffix, concept, (x, y, width, height)) in the 1024 frame.

    The header as distributed has more cells than the rows; so only the order counts.
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
        if any(cells):
            try:
                x, y, width, height = map(float, cells[2:6])
                boxes.append(
                    (PurePosixPath(cells[0]).stem, native.concepts[native.resolve(cells[1])], (x, y, width, height))
                )
            except (ValueError, IndexError) as error:  # a VividError is a ValueError, too: an unknown finding
                raise VividError(f"{path}: row {number}: not image, finding, x, y, width, height: {error}") from error
    return boxes


def _size(path: Path) -> tuple[int, int]:
    """Width and height from the file's header; the frame's where there is no file."""
    if not path.is_file():
        return FRAME, FRAME
    with Image.open(path) as image:
        return image.size
