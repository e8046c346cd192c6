"""A MedMNIST file: labels at once, images one by one, so that 3 GB of pixels are never in memory."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from vivid_monai.data.splits import SPLITS
from vivid_monai.errors import VividError

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
