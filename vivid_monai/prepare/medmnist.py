"""A MedMNIST file into PNG files and rows of the manifest, in its official splits."""

import hashlib
import io
import os
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
from monai.apps.utils import download_url
from numpy.lib import format as npy
from PIL import Image
from tqdm import tqdm

from vivid_monai.data.columns import FINDING
from vivid_monai.data.splits import SPLITS
from vivid_monai.errors import VividError
from vivid_monai.prepare.source import KEY, ROW, TABLE, Rows, Source
from vivid_monai.ums.label_space import LabelSpace, load_label_space
from vivid_monai.ums.states import ABSENT, PRESENT

SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class _Kind:
    label_space: str
    modality: str
    anatomy: str
    view: str | None = None


_KINDS = {
    "organamnist": _Kind("organamnist-11", "CT", "abdomen", "axial"),
    "organcmnist": _Kind("organamnist-11", "CT", "abdomen", "coronal"),
    "organsmnist": _Kind("organamnist-11", "CT", "abdomen", "sagittal"),
    "pneumoniamnist": _Kind("pneumoniamnist", "DX", "chest"),
}
NAMES = tuple(_KINDS)
"""The sets that have a label space: grey, two-dimensional, one class per image."""


@dataclass(frozen=True)
class Official:
    """A data set as the package describes it.

    Attributes:
        classes: the words of the classes; the position is the class number.
        fields: class number → field of ``space``; ``None`` for the class that is no field ("normal").
        counts: split ("train", "val", "test") → images.
    """

    name: str
    title: str
    licence: str
    classes: tuple[str, ...]
    fields: tuple[str | None, ...]
    counts: Mapping[str, int]
    space: LabelSpace
    modality: str
    anatomy: str
    view: str | None
    info: Mapping[str, Any]

    def file_name(self, size: int) -> str:
        """The name of the file with images of ``size`` pixels a side."""
        return f"{self.name}{_suffix(size)}.npz"

    def url(self, size: int) -> str:
        """Where that file is published."""
        return self.info[f"url{_suffix(size)}"]

    def md5(self, size: int) -> str:
        """Its MD5, in hexadecimal."""
        return self.info[f"MD5{_suffix(size)}"]


def official(name: str) -> Official:
    """Return what the package says of a data set, with its classes checked against our label space.

    Raises:
        VividError: the package is not installed or too old, the set has no label space, or its classes are not those
            of the label space in the same order.
    """
    if name not in _KINDS:
        raise VividError(f"MedMNIST {name!r} has no label space here: those with one are {', '.join(NAMES)}")
    info = _package_info().get(name, {})
    if missing := [key for key in ("label", "n_samples", "MD5_224", "url_224") if key not in info]:
        raise VividError(f"the installed medmnist knows no {missing[0]!r} of {name!r}: install medmnist>=3.0")
    kind = _KINDS[name]
    space = load_label_space(kind.label_space)
    classes = tuple(info["label"].get(str(number)) for number in range(len(info["label"])))
    fields = space.fields if space.none_label is None else (None, *space.fields)
    ours = tuple(space.none_label if field is None else field for field in fields)
    if classes != ours:
        raise VividError(
            f"{name}: the medmnist package has the classes {', '.join(map(str, classes))}, but label space "
            f"{space.name!r} has {', '.join(map(str, ours))}: labels would get wrong names, so nothing is prepared"
        )
    return Official(
        name=name,
        title=info["python_class"],
        licence=info["license"],
        classes=classes,
        fields=fields,
        counts=dict(info["n_samples"]),
        space=space,
        modality=kind.modality,
        anatomy=kind.anatomy,
        view=kind.view,
        info=info,
    )


def _suffix(size: int) -> str:
    if size not in SIZES:
        raise VividError(f"MedMNIST has no size {size}: its sizes are {', '.join(map(str, SIZES))}")
    return "" if size == 28 else f"_{size}"


def _package_info() -> dict[str, Any]:
    """The package's INFO. Importing it makes an empty folder ~/.medmnist, which nothing here uses.

    What the import says is of no use: it asks for packages that only its own Dataset classes need, and warns where the
    home folder cannot be written.
    """
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from medmnist import INFO
    except ImportError as error:
        raise VividError(
            f"MedMNIST's file list and classes come from the package medmnist, which cannot be imported ({error}): "
            "pip install 'vivid-monai[medmnist]', or pip install --no-deps medmnist (without the torchvision that "
            "it declares and that is not needed here)"
        ) from error
    return INFO


_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class MedFile:
    """A file whose keys, types, shapes and labels were checked.

    Attributes:
        size: height and width of its images, pixels.
        labels: split → class numbers int64 (N,).
    """

    path: Path
    size: int
    labels: dict[str, np.ndarray]

    def images(self, split: str) -> Iterator[np.ndarray]:
        """Yield the split's images, uint8 (size, size), in the file's order and orientation.

        Raises:
            VividError: the file is damaged; the last image comes only after the checksum of all was found right.
        """
        n, held = len(self.labels[split]), None
        with _reading(self.path, f"{split}_images") as stream:
            _header(stream)
            for _ in range(n):
                pixels = stream.read(self.size * self.size)
                if len(pixels) < self.size * self.size:
                    raise EOFError("it ends before its last image")
                if held is not None:
                    yield held
                held = np.frombuffer(pixels, np.uint8).reshape(self.size, self.size)
            if stream.read(1):  # the read that meets the end also verifies the checksum
                raise ValueError("it goes on after its last image")
        if held is not None:
            yield held


def open_file(path: Path, n_classes: int) -> MedFile:
    """Check everything about a file but its pixels. Nothing in it is executed: pickled objects are refused.

    Raises:
        VividError: not an .npz, a key missing, another type or shape than MedMNIST's, a label that is no class.
    """
    labels, sizes = {}, {}
    for split in SPLITS:
        with _reading(path, f"{split}_images") as stream:
            shape, fortran, dtype = _header(stream)
            if dtype != np.uint8 or len(shape) != 3 or shape[1] != shape[2] or 0 in shape[1:] or fortran:
                raise ValueError(f"it holds {_told(shape, dtype, fortran)}, not grey images uint8 (N, size, size)")
        with _reading(path, f"{split}_labels") as stream:
            values = npy.read_array(stream, allow_pickle=False)
            if values.dtype.kind not in "iu" or values.shape != (shape[0], 1):
                raise ValueError(
                    f"it holds {_told(values.shape, values.dtype)}, not one class number for each image, "
                    f"integer ({shape[0]}, 1)"
                )
            wrong = np.flatnonzero((values < 0) | (values >= n_classes))
            if len(wrong):
                raise ValueError(f"image {wrong[0]} has class {values[wrong[0], 0]}; classes are 0 to {n_classes - 1}")
        labels[split], sizes[split] = values[:, 0].astype(np.int64), shape[1]
    if len(set(sizes.values())) > 1:
        raise VividError(f"{path}: its splits have images of different sizes: {sizes}")
    return MedFile(path, sizes["train"], labels)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of the array that the stream starts with; the stream is at its values then."""
    version = npy.read_magic(stream)
    if version not in _READERS:
        raise ValueError(f"it is of .npy version {version}")
    return _READERS[version](stream)


def _told(shape: tuple[int, ...], dtype: np.dtype, fortran: bool = False) -> str:
    return f"{dtype} {shape}{' in Fortran order' if fortran else ''}"


@contextmanager
def _reading(path: Path, key: str) -> Iterator[IO[bytes]]:
    """The array ``key`` of the file as a stream; whatever goes wrong with it becomes one VividError."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
            if f"{key}.npy" not in names:
                raise VividError(
                    f"{path}: has no {key!r}; it has {', '.join(n.removesuffix('.npy') for n in names) or 'nothing'}"
                )
            with file.open(f"{key}.npy") as stream:
                yield stream
    except zipfile.BadZipFile as error:
        raise VividError(f"{path}: not a whole .npz file ({error}): download it again") from error
    except (OSError, EOFError, ValueError, zlib.error, RuntimeError, MemoryError) as error:
        if isinstance(error, VividError):
            raise
        raise VividError(f"{path}: {key} cannot be used: {error}") from error


_PER_FOLDER = 1000
_AT_ONCE = 256


def image_id(split: str, position: int) -> str:
    """The name of the image at a position of its split's array."""
    return f"{split}-{position:05d}"


def image_path(split: str, position: int) -> str:
    """Where that image lies in the folder of its file: at most 1,000 images are in one folder."""
    return f"{split}/{position // _PER_FOLDER:03d}/{image_id(split, position)}.png"


def write_images(file: MedFile, folder: Path, *, workers: int) -> None:
    """Write every image as 8-bit grey PNG; ``folder`` takes its name only when all of them are there.

    A run that is killed leaves ``.NAME.part`` beside it, which the next run removes. A folder that has its name is
    whole and stays as it is.

    Raises:
        VividError: the file is damaged, or the folder cannot be written.
    """
    if folder.is_dir():
        return
    part = folder.with_name(f".{folder.name}.part")
    n = sum(map(len, file.labels.values()))
    try:
        shutil.rmtree(part, ignore_errors=True)
        with ThreadPoolExecutor(workers) as pool, tqdm(total=n, desc="images", unit="image", leave=False) as bar:
            images = _numbered(file, part)
            while batch := list(islice(images, _AT_ONCE)):
                list(pool.map(_save, batch))
                bar.update(len(batch))
        os.sync()  # once for all files: the folder must not have its name before its files are on the disk
        part.rename(folder)
    except OSError as error:
        raise VividError(f"{folder}: images cannot be written: {error}; none were left") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _numbered(file: MedFile, folder: Path) -> Iterator[tuple[Path, np.ndarray]]:
    for split in file.labels:
        for position, pixels in enumerate(file.images(split)):
            path = folder / image_path(split, position)
            if position % _PER_FOLDER == 0:
                path.parent.mkdir(parents=True)
            yield path, pixels


def _save(task: tuple[Path, np.ndarray]) -> None:
    path, pixels = task
    Image.fromarray(pixels).save(path, format="PNG")


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
