"""What is to be answered: image files found in folders, and what the tags of a DICOM file say against it."""

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom

from vivid_monai.errors import VividError

RADIOGRAPHS = ("CR", "DX", "RG", "OT")
"""Modalities that are answered: radiographs, and what does not say what it is."""
_CHEST = ("CHEST", "THORAX", "LUNG", "RIB", "HEART", "TSPINE")
_TAGS = ("Modality", "BodyPartExamined", "ViewPosition", "PatientOrientation", "StudyInstanceUID")


@dataclass(frozen=True)
class Input:
    """A file as it was when it was found; another size or time makes it another input."""

    path: str
    size: int
    mtime_ns: int


def find_inputs(paths: Iterable[Path]) -> list[Input]:
    """Files as they are given, and every file under the folders that are given, in order, each once.

    Hidden files and folders under a folder are passed over. What a file is, its content tells later.

    Raises:
        VividError: a path that does not exist, or no file at all.
    """
    found: dict[str, Input] = {}
    for path in paths:
        if not path.exists():
            raise VividError(f"{path}: there is no such file or folder")
        for file in _files(path):
            status = os.stat(file)
            found.setdefault(os.path.abspath(file), Input(str(file), status.st_size, status.st_mtime_ns))
    if not found:
        raise VividError("there is no file in what was given")
    return list(found.values())


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def is_dicom(path: str) -> bool:
    """Whether a file is DICOM, by its content."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def objection(path: str, views: Collection[str]) -> str | None:
    """Why a DICOM file is not to be answered, by its tags; None where they say nothing against it.

    Another modality than a radiograph's, another part of the body than the chest, an oblique view, or a lateral one
    where none was trained on: by ViewPosition or, where that is empty, by PatientOrientation (PS3.3 C.7.6.1.1.1: in a
    frontal view rows run from side to side, in a lateral one between front and back). No DICOM, no tags.
    """
    try:
        tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        said = {name: str(tags.get(name) or "").strip().upper() for name in _TAGS[:3]}
        rows = [str(one).upper() for one in tags.get("PatientOrientation") or []]
    except Exception:  # no DICOM, or damaged: reading its pixels says so
        return None
    if said["Modality"] and said["Modality"] not in RADIOGRAPHS:
        return f"not a radiograph: its modality is {_word(said['Modality'])}"
    if said["BodyPartExamined"] and not any(part in said["BodyPartExamined"] for part in _CHEST):
        return "not a chest: its tag BodyPartExamined names another part"
    if said["ViewPosition"] in ("LLO", "RLO"):
        return "an oblique view"
    if _is_lateral(said["ViewPosition"], rows) and not set(views) & {"lateral", "LL", "RL"}:
        return "a lateral view, which the model was not trained on"
    return None


def _is_lateral(view: str, rows: list[str]) -> bool:
    if view:  # LLD and RLD are frontal views of a patient who lies on the side
        return view in ("LL", "RL") or ("LAT" in view and "DEC" not in view)
    return bool(rows) and rows[0][:1] in ("A", "P")


def _word(value: str) -> str:
    """A code of the standard, and never free text, which might name a patient."""
    return value if len(value) == 2 and value.isalpha() else "another"
