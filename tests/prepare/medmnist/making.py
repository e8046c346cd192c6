"""A small file in the layout of MedMNIST's, and an entry of the package's list that knows it as the official one."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

COUNTS = {"train": 12, "val": 5, "test": 7}


def arrays(size: int = 28, n_classes: int = 11, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise, and labels that go through the classes, from another one in each split."""
    random = np.random.default_rng(seed)
    made = {}
    for start, (split, n) in enumerate(COUNTS.items()):
        made[f"{split}_images"] = random.integers(0, 256, (n, size, size), dtype=np.uint8)
        made[f"{split}_labels"] = ((start + np.arange(n)) % n_classes).astype(np.uint8)[:, None]
    return made


def write(path: Path, made: dict[str, np.ndarray]) -> Path:
    """Write the file as MedMNIST's are written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **made)
    return path


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def call_official(monkeypatch: pytest.MonkeyPatch, path: Path, name: str = "organamnist", **entries: object) -> None:
    """Let the package say that this file is the official one of its size; everything else in the entry is its own."""
    import medmnist

    suffix = path.stem.removeprefix(name)
    known = {**medmnist.INFO[name], "n_samples": COUNTS, f"MD5{suffix}": md5(path)} | entries
    monkeypatch.setitem(medmnist.INFO, name, known)
