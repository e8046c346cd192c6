"""A MedMNIST file into PNG files and rows of the manifest, in its official splits."""

import hashlib
import tempfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
from monai.apps.utils import download_url
from tqdm import tqdm

from vivid_monai.data.columns import FINDING
from vivid_monai.data.sources.medmnist.images import image_id, image_path, write_images
from vivid_monai.data.sources.medmnist.info import Official, official
from vivid_monai.data.sources.medmnist.npz import MedFile, open_file
from vivid_monai.data.sources.rows import KEY, ROW, TABLE, Rows
from vivid_monai.data.sources.source import Source
from vivid_monai.data.splits import SPLITS
from vivid_monai.errors import VividError
from vivid_monai.ums.states import ABSENT, PRESENT

_CHUNK = 1 << 22  # bytes


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
        root: folder of the official file.
        size: of its images, 28, 64, 128 or 224 pixels; the official file of that size is used.
        download: fetch the official file into ``root`` where it is not there.
        unofficial: a file of the same layout that need not be the official one; the manifest's ``dataset`` says so.
        workers: threads that write images.

    Raises:
        VividError: the package is missing or has other classes; no such file; another MD5 or other counts than the
            official ones; a file that is damaged or of another layout; images cannot be written.
    """
    known = official(name)
    if (root is None) == (unofficial is None):
        raise VividError("give either --root, the folder of the official file, or --unofficial-file")
    if unofficial is not None:
        if not unofficial.is_file():
            raise VividError(f"{unofficial}: no such file")
        path, md5 = unofficial, _md5(unofficial)
    else:
        assert root is not None
        path = root / known.file_name(size)
        md5 = _official_file(path, known, size, download=download)
    file = open_file(path, len(known.classes))
    counts = {split: len(labels) for split, labels in file.labels.items()}
    if unofficial is None and (counts != known.counts or file.size != size):
        raise VividError(f"{path}: holds {counts} images of {file.size} pixels; official are {known.counts} of {size}")
    # The MD5 in the name keeps images of different files apart, so that an earlier manifest stays right.
    folder = f"images/{path.stem}-{md5[:8]}"
    write_images(file, out / folder, workers=workers)
    dataset = name if unofficial is None else f"{name}-unofficial"
    return Source(
        dataset=dataset,
        rows=_rows(file, known, folder, dataset, [*_notes(known, md5, official_file=unofficial is None)]),
        label_space=known.space.name,
        image_root=out,
        files=[path],
        official=frozenset(SPLITS),
        label_policy=_policy(known),
        contradictions="keep",
        val=0.0,
        test=0.0,
    )


def _official_file(path: Path, known: Official, size: int, *, download: bool) -> str:
    """The MD5 of the file, which is the official one."""
    expected = known.md5(size)
    if not path.is_file():
        by_hand = f"download {known.url(size)} (MD5 {expected}) and put it there under this name"
        if not download:
            raise VividError(f"{path}: no such file: {by_hand}, or let --download do it")
        _download(path, known.url(size), expected, by_hand)
    if (md5 := _md5(path)) != expected:
        raise VividError(
            f"{path}: not the official file: its MD5 is {md5}, the package medmnist has {expected}. Download it again "
            f"from {known.url(size)}; or take it as what it is with --unofficial-file"
        )
    return md5


def _download(path: Path, url: str, md5: str, by_hand: str) -> None:
    """Fetch a file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as part:
            download_url(url, Path(part) / path.name, hash_val=md5, hash_type="md5")
            (Path(part) / path.name).replace(path)
    except (URLError, OSError, RuntimeError) as error:
        raise VividError(f"{path}: could not be downloaded ({error}): {by_hand}") from error


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    n = path.stat().st_size
    with path.open("rb") as stream, tqdm(total=n, desc="MD5", unit="B", unit_scale=True, leave=False) as bar:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _policy(known: Official) -> str:
    if known.space.exclusive:
        return "The field at the position of the class number is present, all others are absent."
    return f"Class 0 ({known.classes[0]!r}) makes the field absent, class 1 ({known.classes[1]!r}) present."


def _notes(known: Official, md5: str, *, official_file: bool) -> list[str]:
    if official_file:
        told = f"The official file: MD5 {md5}, as the package medmnist has it. Licence {known.licence}."
        patients = (
            "The official splits are by CT volume"
            if known.modality == "CT"
            else "Whether the official splits are by patient cannot be seen"
        )
    else:
        told = f"NOT THE OFFICIAL FILE (MD5 {md5}): numbers from it are no {known.title} numbers."
        patients = "What its splits are by cannot be seen"
    return [
        told,
        "The file names no patients, so each image stands for a patient of its own. Intervals are over images then, "
        f"and too narrow where images are of one patient. {patients}.",
    ]


def _rows(file: MedFile, known: Official, folder: str, dataset: str, notes: list[str]) -> Rows:
    places = [(split, i) for split, labels in file.labels.items() for i in range(len(labels))]
    n = len(places)
    ids = [image_id(split, i) for split, i in places]
    classes = np.concatenate(list(file.labels.values()))
    words = {"modality": known.modality, "anatomy": known.anatomy, "view": known.view, "dataset": dataset}
    words |= {TABLE: file.path.name, "labeller": "MedMNIST", "labeller_version": None, "source": "human"}
    words |= {"study_id": None, "sex": None}
    columns = {
        "id": pa.array(ids),
        KEY: pa.array(ids),
        ROW: pa.array([i for _, i in places], pa.int64()),
        "image": pa.array([f"{folder}/{image_path(split, i)}" for split, i in places]),
        "patient_id": pa.array(ids),
        "split": pa.array([split for split, _ in places]),
        "height": pa.array([file.size] * n, pa.int32()),
        "width": pa.array([file.size] * n, pa.int32()),
        "age": pa.nulls(n, pa.float64()),
    }
    columns |= {name: pa.array([word] * n, pa.string()) for name, word in words.items()}
    for number, field in enumerate(known.fields):
        if field is not None:
            columns[FINDING + field] = pa.array(np.where(classes == number, PRESENT, ABSENT), pa.int8())
    return Rows(table=pa.table(columns), n_read=n, notes=notes)
