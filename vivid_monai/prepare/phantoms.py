"""Write a folder of phantoms: images, manifest and reports; a folder with the same settings is used again."""

import json
import os
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import joblib
import pyarrow as pa
from PIL import Image

from vivid_monai.data.columns import row_of
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SplitRule
from vivid_monai.errors import VividError
from vivid_monai.logs import progress
from vivid_monai.phantom.patients import LABEL_SPACE
from vivid_monai.phantom.phantom import MAX_SIZE, MIN_SIZE, VERSION, generate, require_integer
from vivid_monai.storage.files import part_folder
from vivid_monai.ums.label_space import load_label_space

_ALONE = 300
"""Up to as many, starting processes takes longer than drawing."""
_BATCH = 32


def prepare(
    root: str | os.PathLike[str],
    *,
    n: int = 4000,
    seed: int = 0,
    size: int = 128,
    val: float = 0.1,
    test: float = 0.2,
    workers: int | None = None,
) -> Path:
    """Write phantoms 0 … n−1 of population `seed` into the folder `root`, and return the path of its manifest.

    The folder holds `images/**.png` (8-bit grey), `manifest.parquet` and `reports.jsonl` (one line per study). It
    appears complete or not at all, and is used again where it holds the same settings. Its bytes do not depend on
    `workers`.

    Args:
        root: a folder that is new, empty, or made by this function with the same settings.
        n, seed: number of images, and which population of patients.
        size: pixels of an image's side, 32 to 4096.
        val, test: fractions of the patients, drawn by `SplitRule`.
        workers: processes; default: one per available core.

    Raises VividError: a setting out of range, or a folder that holds something else.
    """
    if not isinstance(root, (str, os.PathLike)) or str(root).startswith("["):
        raise VividError(
            f"{root}: phantoms are made in one folder; to train on several prepared data sets, add "
            "configs/data/union.json to --config_file"
        )
    root = Path(root)
    n, seed = require_integer("number", n, 1), require_integer("seed", seed)
    size = require_integer("size", size, MIN_SIZE, MAX_SIZE)
    rule = SplitRule(val=val, test=test)
    settings = {"generator": "vivid-monai phantom", "version": VERSION, "n": n, "seed": seed, "size": size}
    if _is_made(root, settings, rule):
        return root / "manifest.parquet"
    workers = require_integer("workers", joblib.cpu_count() if workers is None else workers, 1)
    try:
        with part_folder(root) as part:
            rows = _write_all(part, seed, size, n, 1 if n <= _ALONE else workers)
            _write_reports(part / "reports.jsonl", rows)
            table = pa.Table.from_pylist(rows).append_column("split", rule.assign([row["patient_id"] for row in rows]))
            about: dict[str, Any] = {"splits": rule.to_dict(), "sources": [settings]}
            manifest = Manifest(table, label_space=LABEL_SPACE, image_root=part, **about)
            manifest.save(part / "manifest.parquet")
            try:
                part.replace(root)
            except OSError:  # another process was faster; its folder serves if it is the same
                if not _is_made(root, settings, rule):
                    raise
    except (OSError, BrokenExecutor) as error:
        raise VividError(f"{root}: the phantoms cannot be written: {error}; nothing was left behind") from error
    return root / "manifest.parquet"


def _is_made(root: Path, settings: dict[str, Any], rule: SplitRule) -> bool:
    """Whether the folder holds these phantoms already; VividError where it holds something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / "manifest.parquet").is_file():
        raise VividError(f"{root}: holds something else than phantoms; name a new folder or empty this one")
    manifest = Manifest.load(root / "manifest.parquet")
    found = (manifest.sources[0] if manifest.sources else {}) | {"splits": manifest.splits}
    for key, wanted in (settings | {"splits": rule.to_dict()}).items():
        if found.get(key) != wanted:
            was = f"made with {key} = {found.get(key)!r}, not {wanted!r}"
            raise VividError(f"{root}: {was}; name a new folder or remove this")
    if lost := sum(not Path(item["image"]).is_file() for item in manifest.items()):
        told = f"{lost} of its {len(manifest)} images are missing"
        raise VividError(f"{root}: {told}; remove the folder to make them anew")
    return True


def _write_all(root: Path, seed: int, size: int, n: int, workers: int) -> list[dict[str, Any]]:
    """Write all images and return their rows of the manifest in order."""
    work = joblib.Parallel(n_jobs=workers, batch_size=_BATCH, return_as="generator")
    rows = work(joblib.delayed(_write_image)(root, seed, size, index) for index in range(n))
    return list(progress(rows, total=n, desc="phantoms", unit="image", disable=n < _ALONE))


def _write_image(root: Path, seed: int, size: int, index: int) -> dict[str, Any]:
    """Write a phantom's PNG below `root` and return its row of the manifest."""
    phantom = generate(seed, index, size)
    path = root / phantom.record.image.path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Level 1: noise hardly compresses, however long one tries.
    Image.fromarray(phantom.image).save(path, compress_level=1)
    return row_of(phantom.record, load_label_space(LABEL_SPACE))


def _write_reports(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line for each study: its id, its patient, its report."""
    studies = {row["study_id"]: {key: row[key] for key in ("study_id", "patient_id", "report")} for row in rows}
    path.write_text("".join(json.dumps(study) + "\n" for study in studies.values()), encoding="utf-8")
