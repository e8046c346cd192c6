"""NIH ChestX-ray14 as distributed, either version of its table (Wang et al., CVPR 2017)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.data.columns import FINDING, WORD
from vivid_monai.data.label_spaces import LabelSpaceSource, open_label_space, stored_label_space
from vivid_monai.data.sources.cells import BadCell, CellReader, age_in_years, constant
from vivid_monai.data.sources.csv_table import read_csv
from vivid_monai.data.sources.nih_boxes import BOX_TABLE, add_boxes
from vivid_monai.data.sources.nih_files import LISTS, image_folders, read_lists
from vivid_monai.data.sources.rows import KEY, TABLE, Rows
from vivid_monai.data.sources.source import Source
from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace, load_label_space
from vivid_monai.ums.states import ABSENT, NULL, PRESENT

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_NO_FINDING = "no-finding"
_NAME = r"^(?P<patient>\d{8})_\d{3}\.png$"
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
    rows.drop(pc.invert(pc.match_substring_regex(rows.table["Image Index"], _NAME)), "bad-path", "not NNNNNNNN_NNN.png")
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
        contradictions="keep",
        val=0.1,
        test=0.0 if lists else 0.2,
    )


def _parse(rows: Rows, space: LabelSpace, folders: dict[str, str] | None, lists: dict[str, str]) -> None:
    table = rows.table
    n = table.num_rows
    names = table["Image Index"].to_pylist()
    cells = CellReader(rows)
    images = [f"{folders.get(name, 'images')}/{name}" if folders is not None else f"images/{name}" for name in names]
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "id": pc.replace_substring(table["Image Index"], ".png", ""),
        "image": pa.array(images),
        "patient_id": cells.read("Patient ID", _patient, WORD),
        "study_id": pa.nulls(n, pa.string()),
        "view": cells.read("View Position", _VIEWS, WORD),
        "sex": cells.read("Patient Gender", _SEX, WORD),
        "age": cells.read("Patient Age", age_in_years, pa.float64()),
        "dataset": constant("nih-chestxray14", n),
        "modality": constant("DX", n),
        "anatomy": constant("chest", n),
        "labeller": constant("NIH text mining", n),
        "labeller_version": constant("2020" if "v2020" in table[TABLE][0].as_py() else "2017", n),
        "source": constant("report", n),
        **_states(cells, space),
    }
    official = [lists.get(name) for name in names]
    columns["split"] = pa.array(["test" if side == "test" else None for side in official], pa.string())
    cells.finish({**columns, "official": pa.array(official, pa.string())})
    if lists:
        rows.drop(pc.is_null(rows.table["official"]), "not-in-lists", "in neither train_val_list.txt nor test_list.txt")
    by_name = pc.utf8_slice_codeunits(rows.table[KEY], 0, 8)
    rows.drop(
        pc.not_equal(by_name, rows.table["patient_id"].cast(pa.string())),
        "patient-mismatch",
        "the file name and the column 'Patient ID' name different patients",
    )
    rows.table = rows.table.drop_columns(["official"])


def _patient(text: str) -> str:
    if not text.isdecimal():
        raise BadCell("a number")
    return text.zfill(8)


def _states(cells: CellReader, space: LabelSpace) -> dict[str, pa.Array]:
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
    sets = cells.translate("Finding Labels", listed)
    columns = {}
    for field in space.fields:
        concept = space.concepts.get(field)
        columns[FINDING + field] = sets.take(
            [NULL if concept not in known or s is None else PRESENT if concept in s else ABSENT for s in sets.values],
            pa.int8(),
        )
    if not any(space.concepts.get(field) in known for field in space.fields):
        raise VividError(f"label space {space.name!r} shares no concept with nih-14")
    return columns
