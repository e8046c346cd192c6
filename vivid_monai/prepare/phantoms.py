"""A folder of phantoms: images, manifest and reports, written once and found again."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from vivid_monai.data.columns import row_of
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SplitRule
from vivid_monai.errors import VividError
from vivid_monai.phantom.disease import LABEL_SPACE
from vivid_monai.phantom.phantom import MAX_SIZE, MIN_SIZE, VERSION, generate, require_integer
from vivid_monai.ums.label_space import load_label_space


def write_images(root: Path, seed: int, size: int, indices: Iterable[int]) -> Iterator[str]:
    """Write each phantom's PNG below `root` and yield its row of the manifest as a line of JSON."""
    space = load_label_space(LABEL_SPACE)
    for index in indices:
        phantom = generate(seed, index, size)
        path = root / phantom.record.image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Level 1: noise hardly compresses, however long one tries.
        Image.fromarray(phantom.image).save(path, compress_level=1)
        yield json.dumps(row_of(phantom.record, space))


if __name__ == "__main__":
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    for line in write_images(folder, settings["seed"], settings["size"], range(*settings["range"])):
        print(line, flush=True)


# Below this, starting other programs takes longer than drawing.
_ALONE = 300


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
    appears whole or not at all, and is used again where it holds the same settings; `workers` changes nothing in it.

    Args:
        root: a folder that is new, empty, or made by this function with the same settings.
        n: number of images.
        seed: which population of patients.
        size: pixels of an image's side, 32 to 4096.
        val: fraction of the patients for validation; they are drawn by `SplitRule`.
        test: fraction of the patients for test.
        workers: programs at work side by side; default: one per available core.

    Raises:
        VividError: a setting out of range, or a folder that holds something else.
    """
    root = Path(root)
    n, seed = require_integer("number", n, 1), require_integer("seed", seed)
    size = require_integer("size", size, MIN_SIZE, MAX_SIZE)
    rule = SplitRule(val=val, test=test)
    settings = {"generator": "vivid-monai phantom", "version": VERSION, "n": n, "seed": seed, "size": size}
    if _is_made(root, settings, rule):
        return root / "manifest.parquet"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = 1 if n <= _ALONE else require_integer("workers", cores if workers is None else workers, 1)
    part = root.parent / f".{root.name}.{uuid.uuid4().hex[:12]}.part"
    try:
        part.mkdir(parents=True)
        rows = _write_all(part, seed, size, n, workers)
        _write_reports(part / "reports.jsonl", rows)
        table = pa.Table.from_pylist(rows).append_column("split", rule.assign([row["patient_id"] for row in rows]))
        manifest = Manifest(table, label_space=LABEL_SPACE, image_root=part, splits=rule.to_dict(), sources=[settings])
        manifest.save(part / "manifest.parquet")
        try:
            part.replace(root)
        except OSError:
            # Another process was faster; its folder serves if it is the same.
            if not _is_made(root, settings, rule):
                raise
    except OSError as error:
        raise VividError(f"{root}: the phantoms cannot be written: {error}; nothing was left behind") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
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
            raise VividError(
                f"{root}: made with {key} = {found.get(key)!r}, not {wanted!r}; name a new folder or remove this"
            )
    if lost := sum(not Path(item["image"]).is_file() for item in manifest.items()):
        raise VividError(
            f"{root}: {lost} of its {len(manifest)} images are missing; remove the folder to make them anew"
        )
    return True


def _write_all(root: Path, seed: int, size: int, n: int, workers: int) -> list[dict[str, Any]]:
    """Write all images and return their rows of the manifest in order."""
    with tqdm(total=n, desc="phantoms", unit="image", disable=n < _ALONE) as bar:
        if workers == 1:
            shares: list[list[str]] = [[]]
            for line in write_images(root, seed, size, range(n)):
                shares[0].append(line)
                bar.update()
        else:
            with ThreadPoolExecutor(workers) as pool:
                ranges = [{"seed": seed, "size": size, "range": [first, n, workers]} for first in range(workers)]
                shares = list(pool.map(lambda settings: _write_share(root, settings, bar), ranges))
    rows = [json.loads(line) for share in shares for line in share]
    return sorted(rows, key=lambda row: row["id"])


def _write_share(root: Path, settings: dict[str, Any], bar: tqdm) -> list[str]:
    """Let another program write some of the images; returns their rows as lines of JSON."""
    command = [sys.executable, "-m", "vivid_monai.prepare.phantoms", str(root), json.dumps(settings)]
    # The package is found where this process found it, installed or not.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    lines = []
    with TemporaryFile("w+") as complaints:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment
        ) as program:
            assert program.stdout is not None
            for line in program.stdout:
                lines.append(line)
                bar.update()
        if program.returncode:
            complaints.seek(0)
            told = complaints.read().strip().splitlines() or [f"exit status {program.returncode}"]
            raise VividError(f"{root}: writing phantoms failed: {told[-1]}")
    return lines


def _write_reports(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line for each study: its id, its patient, its report."""
    studies = {row["study_id"]: {key: row[key] for key in ("study_id", "patient_id", "report")} for row in rows}
    path.write_text("".join(json.dumps(study) + "\n" for study in studies.values()), encoding="utf-8")
