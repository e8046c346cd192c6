"""The images of a MedMNIST file as lossless PNG, all of them or none."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vivid_monai.data.sources.medmnist.npz import MedFile
from vivid_monai.errors import VividError

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
