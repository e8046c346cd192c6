"""Adapter for MedMNIST: one of its .npz files into PNG files and rows, in the official splits."""

import hashlib
import io
import os
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
import pandas as pd
from numpy.lib import format as npy
from PIL import Image

from vivid_monai.data.columns import FINDING
from vivid_monai.data.splits import SPLITS
from vivid_monai.errors import VividError, first_line
from vivid_monai.logs import progress
from vivid_monai.prepare.source import KEY, ROW, TABLE, Rows, Source
from vivid_monai.storage.files import part_folder
from vivid_monai.ums.label_space import LabelSpace, load_label_space
from vivid_monai.ums.states import ABSENT, PRESENT

SIZES = (28, 64, 128, 224)
_KINDS: dict[str, tuple[str, dict[str, str | None]]] = {
    "organamnist": ("organamnist-11", {"modality": "CT", "anatomy": "abdomen", "view": "axial"}),
    "organcmnist": ("organamnist-11", {"modality": "CT", "anatomy": "abdomen", "view": "coronal"}),
    "organsmnist": ("organamnist-11", {"modality": "CT", "anatomy": "abdomen", "view": "sagittal"}),
    "pneumoniamnist": ("pneumoniamnist", {"modality": "DX", "anatomy": "chest", "view": None}),
}
NAMES = tuple(_KINDS)
"""The sets that have a label space: grey, two-dimensional, one class per image."""


class Official(NamedTuple):
    """A data set: its entry in the INFO of the package medmnist, our label space, modality, anatomy and view.

    ``fields``: class number → field; ``None`` for the class that is no field ("normal").
    """

    info: dict[str, Any]
    space: LabelSpace
    fields: tuple[str | None, ...]
    kind: dict[str, str | None]

    def file(self, size: int) -> tuple[str, str, str]:
        """Name, URL and MD5 of the file with images of ``size`` pixels a side."""
        if size not in SIZES:
            raise VividError(f"MedMNIST has no size {size}: its sizes are {', '.join(map(str, SIZES))}")
        suffix = "" if size == 28 else f"_{size}"
        return f"{self.info['python_class'].lower()}{suffix}.npz", self.info[f"url{suffix}"], self.info[f"MD5{suffix}"]


def official(name: str) -> Official:
    """Return what the package says of a data set.

    Raises VividError: the package is not installed or too old, the set has no label space, or its classes are not
    those of the label space in the same order.
    """
    if name not in _KINDS:
        raise VividError(f"MedMNIST {name!r} has no label space here: those with one are {', '.join(NAMES)}")
    try:  # the import asks for packages that only its Dataset classes need, which is muted
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from medmnist import INFO
    except ImportError as error:
        raise VividError(
            "MedMNIST's file list and classes come from the package medmnist, which cannot be imported "
            f"({first_line(error)}): "
            "pip install 'vivid-monai[medmnist]', or pip install --no-deps medmnist (without the torchvision that "
            "it declares and that is not needed here)"
        ) from error
    info = INFO.get(name, {})
    if missing := [key for key in ("label", "n_samples", "MD5_224", "url_224") if key not in info]:
        raise VividError(f"the installed medmnist knows no {missing[0]!r} of {name!r}: install medmnist>=3.0")
    space_name, kind = _KINDS[name]
    space = load_label_space(space_name)
    fields = space.fields if space.none_label is None else (None, *space.fields)
    theirs = [info["label"].get(str(number)) for number in range(len(info["label"]))]
    ours = [space.none_label if field is None else field for field in fields]
    if theirs != ours:
        raise VividError(
            f"{name}: the medmnist package has the classes {', '.join(map(str, theirs))}, but label space "
            f"{space.name!r} has {', '.join(map(str, ours))}: labels would get wrong names, so nothing is prepared"
        )
    return Official(info, space, fields, kind)


def read_array(path: Path, key: str) -> np.ndarray:
    """One array of an .npz file, its checksum verified. Nothing in it is executed: pickled objects are refused.

    Raises VividError: not an .npz, no such key, a damaged array.
    """
    try:
        with zipfile.ZipFile(path) as file, file.open(f"{key}.npy") as stream:
            values = npy.read_array(stream, allow_pickle=False)
            if stream.read(1):  # `numpy.load` stops before the end, which is where the checksum is verified
                raise ValueError("it goes on after its last value")
    except KeyError as error:
        there = ", ".join(name.removesuffix(".npy") for name in file.namelist()) or "nothing"
        raise VividError(f"{path}: has no {key!r}; it has {there}") from error
    except zipfile.BadZipFile as error:
        raise VividError(f"{path}: not a whole .npz file ({first_line(error)}): download it again") from error
    except (OSError, EOFError, ValueError, zlib.error, RuntimeError, MemoryError) as error:
        raise VividError(f"{path}: {key} cannot be used: {first_line(error)}") from error
    return values


def read_labels(path: Path, split: str, n_classes: int) -> np.ndarray:
    """Class numbers int64 (N,) of one split. Raises a VividError as `read_array`, and on what is no class."""
    labels = read_array(path, f"{split}_labels")
    if labels.dtype.kind not in "iu" or labels.ndim != 2 or labels.shape[1] != 1:
        found = f"{labels.dtype} {labels.shape}"
        raise VividError(f"{path}: {split}_labels holds {found}, not one class number for each image, integer (N, 1)")
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= n_classes))):
        bad = f"image {wrong[0]} has class {labels[wrong[0], 0]}"
        raise VividError(f"{path}: {split}_labels: {bad}; classes are 0 to {n_classes - 1}")
    return labels[:, 0].astype(np.int64)


def read_images(path: Path, split: str, n: int, size: int | None = None) -> np.ndarray:
    """Images uint8 (n, size, size) of one split; size ``None``: any. Raises a VividError where they are not so."""
    images = read_array(path, f"{split}_images")
    square = images.ndim == 3 and images.shape[1] == images.shape[2] == (size or images.shape[1]) > 0
    if images.dtype != np.uint8 or not square or len(images) != n:
        found, side = f"{images.dtype} {images.shape}", size or "size"
        raise VividError(f"{path}: {split}_images holds {found}, not grey images uint8 ({n}, {side}, {side})")
    return images


def read(
    name: str,
    *,
    out: Path,
    root: Path | None = None,
    size: int = 224,
    download: bool = False,
    unofficial: Path | None = None,
    workers: int = 2,
) -> Source:
    """Write ``out``/images and hand over a row for each image.

    Args:
        name: of the data set, as "organamnist".
        root, size: folder of the official file, and the side of its images, 28, 64, 128 or 224 pixels.
        download: fetch the official file into ``root`` where it is not there.
        unofficial: a file of the same layout that need not be the official one; the manifest's ``dataset`` says so.
        workers: threads that write images.

    Raises VividError: the package is missing or has other classes; no such file; another MD5 or other counts than the
    official ones; a file that is damaged or of another layout; images cannot be written.
    """
    known = official(name)
    if (root is None) == (unofficial is None):
        raise VividError("give either --root, the folder of the official file, or --unofficial-file")
    if unofficial is not None and not unofficial.is_file():
        raise VividError(f"{unofficial}: no such file")
    path = unofficial or _official_file(Path(root or ""), known, size, download=download)
    dataset, md5 = f"{name}-unofficial" if unofficial else name, _md5(path)
    if not unofficial and md5 != (expected := known.file(size)[2]):
        raise VividError(
            f"{path}: not the official file: its MD5 is {md5}, the package medmnist has {expected}. Download it again "
            f"from {known.file(size)[1]}; or take it as what it is with --unofficial-file"
        )
    labels = {split: read_labels(path, split, len(known.fields)) for split in SPLITS}
    counts = {split: len(classes) for split, classes in labels.items()}
    if unofficial is None and counts != (n_samples := dict(known.info["n_samples"])):
        raise VividError(f"{path}: holds {counts} images; official are {n_samples}")
    # The MD5 in the name keeps images of different files apart, so that an earlier manifest stays right.
    folder = f"images/{path.stem}-{md5[:8]}"
    side = write_images(path, counts, out / folder, size=size if unofficial is None else None, workers=workers)

    places = [(split, position) for split, n in counts.items() for position in range(n)]
    ids = [f"{split}-{position:05d}" for split, position in places]
    table = pd.DataFrame(
        {
            TABLE: path.name,
            ROW: [position for _, position in places],
            KEY: ids,
            "id": ids,
            "image": [f"{folder}/{image_path(*place)}" for place in places],
            "patient_id": ids,
            "split": [split for split, _ in places],
            "height": side,
            "width": side,
            **known.kind,
            "dataset": dataset,
            "labeller": "MedMNIST",
            "source": "human",
        }
    )
    classes = np.concatenate(list(labels.values()))
    for number, field in enumerate(known.fields):
        if field is not None:
            table[FINDING + field] = np.where(classes == number, PRESENT, ABSENT).astype(np.int8)
    policy = "The field at the position of the class number is present, all others are absent."
    if not known.space.exclusive:
        absent, present = (known.info["label"][number] for number in "01")
        policy = f"Class 0 ({absent!r}) makes the field absent, class 1 ({present!r}) present."
    return Source(
        dataset=dataset,
        rows=Rows(table=table, n_read=len(table), notes=_notes(known, md5, unofficial is None)),
        label_space=known.space.name,
        image_root=out,
        files=[path],
        official=frozenset(SPLITS),
        label_policy=policy,
        val=0.0,
        test=0.0,
    )


def _official_file(root: Path, known: Official, size: int, *, download: bool) -> Path:
    """The official file, fetched where it is missing and may be."""
    name, url, expected = known.file(size)
    path = root / name
    if not path.is_file():
        by_hand = f"download {url} (MD5 {expected}) and put it there under this name"
        if not download:
            raise VividError(f"{path}: no such file: {by_hand}, or let --download do it")
        from monai.apps.utils import download_url  # MONAI takes ten seconds to import, and only a download needs it

        try:
            with part_folder(path) as part:
                download_url(url, part / name, hash_val=expected, hash_type="md5")
                (part / name).replace(path)
        except (URLError, OSError, RuntimeError) as error:
            raise VividError(f"{path}: could not be downloaded ({first_line(error)}): {by_hand}") from error
    return path


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _notes(known: Official, md5: str, official_file: bool) -> list[str]:
    of_file = f"NOT THE OFFICIAL FILE (MD5 {md5}): numbers from it are no {known.info['python_class']} numbers."
    splits = "What its splits are by is unknown"
    if official_file:
        of_file = f"The official file: MD5 {md5}, as the package medmnist has it. Licence {known.info['license']}."
        splits = "The official splits are by CT volume"
        if known.kind["modality"] != "CT":
            splits = "Whether the official splits are by patient is unknown"
    return [
        of_file,
        "The file names no patients, so each image stands for a patient of its own. Intervals are over images then, "
        f"and too narrow where images are of one patient. {splits}.",
    ]


def image_path(split: str, position: int) -> str:
    """The path of an image in the folder of its file: at most 1,000 images are in one folder."""
    return f"{split}/{position // 1000:03d}/{split}-{position:05d}.png"


def write_images(path: Path, counts: dict[str, int], folder: Path, *, size: int | None, workers: int) -> int:
    """Write every image of a file as 8-bit grey PNG; returns their side in pixels.

    ``folder`` takes its name only when all of them are there; one that has it is complete and stays as it is.

    Raises VividError: as `read_images`; the folder cannot be written.
    """
    if folder.is_dir():
        with Image.open(next(folder.rglob("*.png"))) as image:
            return image.width
    try:
        with part_folder(folder) as part, ThreadPoolExecutor(workers) as pool:
            for split, n in counts.items():
                images = read_images(path, split, n, size)
                size = images.shape[1]
                paths = [part / image_path(split, position) for position in range(n)]
                for parent in {path.parent for path in paths}:
                    parent.mkdir(parents=True)
                list(
                    progress(pool.map(_save, paths, images), total=n, desc=f"{split} images", unit="image", leave=False)
                )
            os.sync()  # once for all files: the folder must not have its name before its files are on the disk
            part.rename(folder)
    except OSError as error:
        raise VividError(f"{folder}: images cannot be written: {error}; none were left") from error
    assert size is not None
    return size


def _save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, format="PNG")
