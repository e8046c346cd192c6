"""Which files of a folder are CT slices and which are XML, by their content; names and folders mean nothing."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from tqdm import tqdm

from vivid_monai.errors import VividError


@dataclass
class Index:
    """Paths only, so that a quarter of a million slices fit.

    Attributes:
        series: CT series instance UID → its files, sorted.
        xml: files that begin like XML.
        other: kind of file that is neither → how many.
        unreadable: DICOM files whose header is damaged → why.
    """

    series: dict[str, list[str]] = field(default_factory=dict)
    xml: list[Path] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)


def index_files(roots: Iterable[Path], *, dicom: bool = True) -> Index:
    """Look at every file below the folders, once each. ``dicom=False``: only for XML.

    Raises:
        VividError: a root is not a folder.
    """
    paths: dict[str, None] = {}
    for root in roots:
        if not root.is_dir():
            raise VividError(f"{root}: not a folder: give the one that holds LIDC-IDRI's files")
        for folder, inner, names in os.walk(root):
            inner.sort()
            paths.update(dict.fromkeys(os.path.realpath(os.path.join(folder, name)) for name in sorted(names)))
    found = Index()
    for path in tqdm(paths, desc="looking at files", unit="file", leave=False, disable=len(paths) < 2000):
        try:
            with open(path, "rb") as file:
                head = file.read(132)
        except OSError as error:
            found.unreadable[path] = str(error)
            continue
        if head[128:] == b"DICM":
            if dicom:
                _add_dicom(found, path)
        elif head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"<?xml", b"<Lidc", b"<Idri")):
            found.xml.append(Path(path))
        else:
            found.other["neither DICOM nor XML"] += 1
    return found


def _add_dicom(found: Index, path: str) -> None:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality", "SeriesInstanceUID"])
        modality, uid = str(header.get("Modality", "")), str(header.get("SeriesInstanceUID") or "")
    except Exception as error:  # what a damaged header makes pydicom raise is not told anywhere
        found.unreadable[path] = f"damaged DICOM header: {error or type(error).__name__}"
        return
    if modality == "CT" and uid:
        found.series.setdefault(uid, []).append(path)
    else:
        found.other[f"DICOM, {modality or 'no modality'}"] += 1
