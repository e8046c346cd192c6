"""Adapter for CheXpert as distributed: train.csv, valid.csv and an optional test table (Irvin et al., 2019)."""

import os
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.data.columns import LabelSpaceSource, open_label_space, stored_label_space
from vivid_monai.errors import VividError
from vivid_monai.prepare.cells import age_in_years
from vivid_monai.prepare.csv_table import read_csv
from vivid_monai.prepare.source import Rows, Source
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.states import ABSENT, NULL, PRESENT, UNCERTAIN

TABLES = {"train": ("train.csv",), "valid": ("valid.csv",), "test": ("test.csv", "test_labels.csv", "groundtruth.csv")}
_PATH = r"^(?:.*/)?(?P<part>train|valid|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/(?P<file>[^/]+)$"
_STATES = {"1.0": PRESENT, "1": PRESENT, "0.0": ABSENT, "0": ABSENT, "-1.0": UNCERTAIN, "-1": UNCERTAIN, "": NULL}
_SEX = {"Male": "M", "Female": "F", "Unknown": None, "": None}
POLICY = (
    "1 present, 0 absent, −1 uncertain (kept), blank null (not mentioned, so not answerable). "
    "The CheXpert labeler made the labels of train.csv from reports, radiologists the others from images."
)


def read(root: Path | str, *, label_space: LabelSpaceSource = "chexpert-14") -> Source:
    """Read the tables under ``root``, the folder that holds train.csv or its parent; any release, any path prefix.

    The held-out table is test: the test table where there is one (valid.csv is then val), else valid.csv. Splits
    without a table are drawn from train.csv by patient. ``label_space`` may be any that shares concepts with
    chexpert-14.

    Raises VividError: no train.csv, a table that cannot be read, a label space that shares nothing with CheXpert.
    """
    root = Path(root)
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir())] if root.is_dir() else []
    home = next((f for f in folders if (f / "train.csv").is_file()), None)
    if home is None:
        raise VividError(f"{root}: no train.csv here nor in a folder below: give the folder of CheXpert-v1.0 or -small")
    there = {part: [home / name for name in names if (home / name).is_file()] for part, names in TABLES.items()}
    tables = {part: paths[0] for part, paths in there.items() if paths}

    target = open_label_space(stored_label_space(label_space))
    taken = {theirs: ours for ours, theirs in load_label_space("chexpert-14").mapping_to(target).items()}
    if not taken:
        raise VividError(f"label space {target.name!r} shares no concept with chexpert-14")
    split_of = {"train": None, "valid": "val" if "test" in tables else "test", "test": "test"}
    parts = []
    for part, path in tables.items():
        rows = read_csv(path, required=["Path", *taken.values()], key="Path")
        # Arrow's regular expressions take a quarter of the time of pandas' own.
        found = pc.extract_regex(pa.array(rows.table["Path"]), _PATH)
        where = pa.Table.from_arrays(found.flatten(), found.type.names).to_pandas().set_index(rows.table.index)
        bad = where["file"].isna()
        rows.drop(bad, "bad-path", "not …/train|valid|test/patientN/studyN/file")
        table, where = rows.table, where[~bad]
        patient, study = where["patient"], where["patient"] + "/" + where["study"]
        nothing = pd.Series(float("nan"), table.index)
        columns = {
            "id": where["part"] + "/" + study + "/" + where["file"].str.replace(r"\.[^.]*$", "", regex=True),
            "image": _folders(root, home, part, patient) + "/" + study + "/" + where["file"],
            "patient_id": patient.astype("category"),
            "study_id": study,
            "split": split_of[part],
            "view": _views(table, where["file"]),
            "sex": rows.read("Sex", _SEX, "category") if "Sex" in table else None,
            "age": rows.read("Age", age_in_years, "float64") if "Age" in table else nothing,
            "dataset": "chexpert",
            "modality": "DX",
            "anatomy": "chest",
            "labeller": "CheXpert labeler" if part == "train" else "radiologists",
            "source": "report" if part == "train" else "human",
        }
        rows.finish(columns | rows.states(target.fields, {field: (name, _STATES) for field, name in taken.items()}))
        parts.append(rows)
    return Source(
        dataset="chexpert",
        rows=Rows(
            table=pd.concat([rows.table for rows in parts], ignore_index=True),
            n_read=sum(rows.n_read for rows in parts),
            skipped=[listed for rows in parts for listed in rows.skipped],
        ),
        label_space=label_space,
        image_root=root,
        files=list(tables.values()),
        official=frozenset(split for part in tables if (split := split_of[part])),
        open_is="train",
        label_policy=POLICY,
        val=0.0 if len(tables) == 3 else 0.02,
        test=0.0 if len(tables) > 1 else 0.1,
    )


def _views(table: pd.DataFrame, file: pd.Series) -> pd.Series:
    """AP and PA as tagged; a frontal image tagged LL or RL is just frontal. The test table has only file names."""
    if "Frontal/Lateral" not in table:
        return file.str.contains("lateral").map({True: "lateral", False: "frontal"}).astype("category")
    tag, projection = table["Frontal/Lateral"].str.strip(), table["AP/PA"].str.strip()
    views = tag.map({"Lateral": "lateral", "Frontal": "frontal"})
    return views.mask((tag == "Frontal") & projection.isin(["AP", "PA"]), projection).astype("category")


def _folders(root: Path, home: Path, part: str, patient: pd.Series) -> pd.Series | str:
    """The folder of each patient below ``root``: one for all, or the batches "… (train 1)" of the full release."""
    bases = dict.fromkeys([home, root, *sorted(p for p in root.iterdir() if p.is_dir())])
    folders = [base / part for base in bases if (base / part).is_dir()]
    if part == "train":
        folders += [base for base in bases if re.search(r"\(train \d+\)", base.name)]
    names = [folder.relative_to(root).as_posix() for folder in folders or [home / part]]
    if len(names) == 1:
        return names[0]
    of_patient = {entry: name for folder, name in zip(folders, names, strict=True) for entry in os.listdir(folder)}
    return patient.map(of_patient).fillna(names[0])
