"""CheXpert as distributed: train.csv, valid.csv and, where there is one, a test table (Irvin et al., 2019)."""

import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.data.columns import FINDING, WORD, LabelSpaceSource, open_label_space, stored_label_space
from vivid_monai.errors import VividError
from vivid_monai.prepare.csv_table import CellReader, age_in_years, constant, distinct, read_csv
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
_VIEWS = {"Lateral": "lateral", "Frontal AP": "AP", "Frontal PA": "PA"}
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
        contradictions="keep",
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
    where = pc.extract_regex(rows.table["Path"], _PATH)
    given = rows.table.column_names
    rows.drop(pc.is_null(where), "bad-path", "not …/train|valid|test/patientN/studyN/file")
    where = pc.extract_regex(rows.table["Path"], _PATH).combine_chunks()
    patient, study, file = (pc.struct_field(where, name) for name in ("patient", "study", "file"))
    top, stem = pc.struct_field(where, "part"), pc.replace_substring_regex(file, r"\.[^.]*$", "")
    study = pc.binary_join_element_wise(patient, study, "/")
    prefix = _folders(root, folder, part, patient)
    n = len(file)
    cells = CellReader(rows)
    by_report = part == "train"
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "id": pc.binary_join_element_wise(top, study, stem, "/"),
        "image": pc.binary_join_element_wise(prefix, study, file, "/"),
        "patient_id": patient.dictionary_encode(),
        "study_id": study,
        "split": constant(split, n),
        "view": _views(rows, file),
        "sex": cells.read("Sex", _SEX, WORD) if "Sex" in given else constant(None, n),
        "age": cells.read("Age", age_in_years, pa.float64()) if "Age" in given else pa.nulls(n, pa.float64()),
        "dataset": constant("chexpert", n),
        "modality": constant("DX", n),
        "anatomy": constant("chest", n),
        "labeller": constant("CheXpert labeler" if by_report else "radiologists", n),
        "source": constant("report" if by_report else "human", n),
    }
    for field in fields:
        never = pa.array(np.full(n, NULL, dtype=np.int8))
        columns[FINDING + field] = cells.read(taken[field], _STATES, pa.int8()) if field in taken else never
    cells.finish(columns)
    return rows


def _views(rows: Rows, file: pa.Array) -> pa.Array:
    """AP and PA as tagged; a frontal image tagged LL or RL is just frontal. The test table has only file names."""
    if "Frontal/Lateral" not in rows.table.column_names:
        return pc.if_else(pc.match_substring(file, "lateral"), "lateral", "frontal").dictionary_encode()
    tags = pc.binary_join_element_wise(rows.table["Frontal/Lateral"], rows.table["AP/PA"], " ")
    codes, texts = distinct(tags)
    views = [_VIEWS.get(text.strip()) or ("frontal" if text.startswith("Frontal") else None) for text in texts]
    return pa.array(views, pa.string()).take(pa.array(codes)).dictionary_encode()


def _folders(root: Path, table_folder: Path, part: str, patient: pa.Array) -> pa.Array | str:
    """The folder of each patient below ``root``: one for all, or the batches "… (train 1)" of the full release."""
    bases = dict.fromkeys([table_folder, root, *sorted(p for p in root.iterdir() if p.is_dir())])
    folders = [base / part for base in bases if (base / part).is_dir()]
    if part == "train":
        folders += [base for base in bases if _BATCH.search(base.name)]
    names = [folder.relative_to(root).as_posix() for folder in folders]
    if len(folders) < 2:
        return names[0] if names else (table_folder / part).relative_to(root).as_posix()
    home = {entry: name for folder, name in zip(folders, names, strict=True) for entry in os.listdir(folder)}
    patients = patient.dictionary_encode()
    return pa.array([home.get(p, names[0]) for p in patients.dictionary.to_pylist()]).take(patients.indices)
