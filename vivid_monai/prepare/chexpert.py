"""Adapter for CheXpert as distributed: train.csv, valid.csv and an optional test table (Irvin et al., 2019)."""

import os
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.data.columns import FINDING, LabelSpaceSource, open_label_space, stored_label_space
from vivid_monai.errors import VividError
from vivid_monai.prepare.csv_table import CellReader, age_in_years, read_csv
from vivid_monai.prepare.source import Rows, Source, concat
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.states import ABSENT, NULL, PRESENT, UNCERTAIN

TABLES = {"train": ("train.csv",), "valid": ("valid.csv",), "test": ("test.csv", "test_labels.csv", "groundtruth.csv")}
_PATH = r"^(?:.*/)?(?P<part>train|valid|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/(?P<file>[^/]+)$"
_STATES = {
    **dict.fromkeys(("1.0", "1"), PRESENT),
    **dict.fromkeys(("0.0", "0"), ABSENT),
    **dict.fromkeys(("-1.0", "-1"), UNCERTAIN),
    "": NULL,
}
_SEX = {"Male": "M", "Female": "F", "Unknown": None, "": None}
_BATCH = re.compile(r"\(train \d+\)")
POLICY = (
    "1 present, 0 absent, −1 uncertain (kept), blank null (not mentioned, so not answerable). "
    "The CheXpert labeler made the labels of train.csv from reports, radiologists the others from images."
)


def read(root: Path | str, *, label_space: LabelSpaceSource = "chexpert-14") -> Source:
    """Read the tables under ``root``, the folder that holds train.csv or its parent; any release, any path prefix.

    The held-out table is test: the test table where there is one (valid.csv is then val), else valid.csv. Splits
    without a table are drawn from train.csv by patient. ``label_space`` may be any that shares concepts with
    chexpert-14.

    Raises:
        VividError: no train.csv, a table that cannot be read, a label space that shares nothing with CheXpert.
    """
    root = Path(root)
    tables = _find_tables(root)
    native, target = load_label_space("chexpert-14"), open_label_space(stored_label_space(label_space))
    taken = {theirs: ours for ours, theirs in native.mapping_to(target).items()}
    if not taken:
        raise VividError(f"label space {target.name!r} shares no concept with chexpert-14")
    split_of = {"train": None, "valid": "val" if "test" in tables else "test", "test": "test"}
    parts = []
    for part, path in tables.items():
        rows = read_csv(path, required=["Path", *taken.values()], key="Path")
        parts.append(
            _parse(rows, root, path.parent, part=part, split=split_of[part], taken=taken, fields=target.fields)
        )
    return Source(
        dataset="chexpert",
        rows=concat(parts),
        label_space=label_space,
        image_root=root,
        files=list(tables.values()),
        official=frozenset(split for part in tables if (split := split_of[part])),
        label_policy=POLICY,
        val=0.0 if len(tables) == 3 else 0.02,
        test=0.0 if len(tables) > 1 else 0.1,
    )


def _find_tables(root: Path) -> dict[str, Path]:
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())] if root.is_dir() else []
    folder = next((f for f in folders if (f / "train.csv").is_file()), None)
    if folder is None:
        raise VividError(f"{root}: no train.csv here nor in a folder below: give the folder of CheXpert-v1.0 or -small")
    found = {part: next((folder / n for n in names if (folder / n).is_file()), None) for part, names in TABLES.items()}
    return {part: path for part, path in found.items() if path is not None}


def _parse(
    rows: Rows,
    root: Path,
    folder: Path,
    *,
    part: str,
    split: str | None,
    taken: dict[str, str],
    fields: tuple[str, ...],
) -> Rows:
    # Arrow's regular expressions take a quarter of the time of pandas' own.
    found = pc.extract_regex(pa.array(rows.table["Path"]), _PATH)
    where = pa.Table.from_arrays(found.flatten(), found.type.names).to_pandas().set_index(rows.table.index)
    bad = where["file"].isna()
    rows.drop(bad, "bad-path", "not …/train|valid|test/patientN/studyN/file")
    table, where = rows.table, where[~bad]
    patient, study = where["patient"], where["patient"] + "/" + where["study"]
    cells = CellReader(rows)
    by_report = part == "train"
    columns = {
        "id": where["part"] + "/" + study + "/" + where["file"].str.replace(r"\.[^.]*$", "", regex=True),
        "image": _folders(root, folder, part, patient) + "/" + study + "/" + where["file"],
        "patient_id": patient.astype("category"),
        "study_id": study,
        "split": split,
        "view": _views(table, where["file"]),
        "sex": cells.read("Sex", _SEX, "category") if "Sex" in table else None,
        "age": cells.read("Age", age_in_years, "float64") if "Age" in table else pd.Series(float("nan"), table.index),
        "dataset": "chexpert",
        "modality": "DX",
        "anatomy": "chest",
        "labeller": "CheXpert labeler" if by_report else "radiologists",
        "source": "report" if by_report else "human",
    }
    never = pd.Series(NULL, table.index, dtype="int8")
    states = {FINDING + f: cells.read(taken[f], _STATES, "int8") if f in taken else never for f in fields}
    cells.finish(columns | states)
    return rows


def _views(table: pd.DataFrame, file: pd.Series) -> pd.Series:
    """AP and PA as tagged; a frontal image tagged LL or RL is just frontal. The test table has only file names."""
    if "Frontal/Lateral" not in table:
        return file.str.contains("lateral").map({True: "lateral", False: "frontal"}).astype("category")
    tag, projection = table["Frontal/Lateral"].str.strip(), table["AP/PA"].str.strip()
    views = tag.map({"Lateral": "lateral", "Frontal": "frontal"})
    return views.mask((tag == "Frontal") & projection.isin(["AP", "PA"]), projection).astype("category")


def _folders(root: Path, table_folder: Path, part: str, patient: pd.Series) -> pd.Series | str:
    """The folder of each patient below ``root``: one for all, or the batches "… (train 1)" of the full release."""
    bases = dict.fromkeys([table_folder, root, *sorted(p for p in root.iterdir() if p.is_dir())])
    folders = [base / part for base in bases if (base / part).is_dir()]
    if part == "train":
        folders += [base for base in bases if _BATCH.search(base.name)]
    names = [folder.relative_to(root).as_posix() for folder in folders]
    if len(folders) < 2:
        return names[0] if names else (table_folder / part).relative_to(root).as_posix()
    home = {entry: name for folder, name in zip(folders, names, strict=True) for entry in os.listdir(folder)}
    return patient.map(home).fillna(names[0])
