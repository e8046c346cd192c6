"""Golden results: what users get from the commands, so that a change of structure can be shown to change nothing.

    python scripts/golden.py make OUT --code CHECKOUT --data REAL_DATA                # by the code of another checkout
    python scripts/golden.py make NEW --code . --data REAL_DATA --earlier OUT         # by this one, on the same inputs
    python scripts/golden.py compare OUT NEW

``make`` runs commands of the README only, on one thread and with fixed seeds: the default run, ``vivid bundle`` of it,
``vivid predict`` on 52 real files of all kinds and on 40 phantoms, 50 steps on NIH images, and every evaluation task.
With ``--earlier`` the manifests, the encoder and the bundle that the earlier code wrote are read again, which is a test
of its own. ``compare`` lists the largest difference of every number in every file.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import load_file

SPACES = {"chexpert": "chexpert-14", "nih_made": "nih-14", "organamnist": "organamnist-11", "table": "chexpert-12"}
FEW = {"min_present": 5, "min_absent": 5, "n_resamples": 100}
BUNDLE = "chest_classification"
INPUTS = ("fixtures", "mixed", "earlier", "models", "data", "phantoms")


class Maker:
    """Runs commands with the code of a checkout in the folder ``out``.

    Args:
        only: run only the steps whose name starts with it; "" for all.
    """

    def __init__(self, out: Path, code: Path, only: str) -> None:
        self.out, self.code, self.only = out, code, only
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        self.env = {**os.environ, **quiet, "PYTHONPATH": str(code)}

    def run(self, name: str, *command: object) -> None:
        """Run a module; its output goes to ``<name>.log``."""
        if not name.startswith(self.only):
            return
        started = time.perf_counter()
        full = [sys.executable, "-m", *map(str, command)]
        with (self.out / f"{name}.log").open("w") as log:
            code = subprocess.run(full, cwd=self.out, env=self.env, stdout=log, stderr=subprocess.STDOUT).returncode
        print(f"{name}: exit code {code}, {time.perf_counter() - started:.0f} s", flush=True)

    def vivid(self, name: str, *arguments: object) -> None:
        self.run(name, "vivid_monai.cli", *arguments)

    def workflow(self, name: str, workflow: str, *files: str, **knobs: object) -> None:
        config = str([str(self.code / "configs" / file) for file in files])
        options = [part for key, value in knobs.items() for part in (f"--{key}", value)]
        self.run(name, "monai.bundle", "run", workflow, "--config_file", config, "--bundle_root", self.out, *options)

    def evaluate(self, name: str, task: str, **knobs: object) -> None:
        files = ("evaluate.json", f"eval/{task}.json")
        self.workflow(f"eval_{name}", "evaluating", *files, output_dir=self.out / "eval" / name, **FEW, **knobs)


def make(out: Path, code: Path, data: Path, earlier: Path | None, only: str) -> None:
    """Run all steps."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "fixtures").exists():
        if earlier is None:
            make_fixtures(out / "fixtures", code)
            make_mixed(out / "mixed", data)
        else:
            for name in ("fixtures", "mixed", "phantoms"):
                shutil.copytree(earlier / name, out / name)
            shutil.copytree(earlier / BUNDLE, out / "earlier" / BUNDLE)
            shutil.copytree(earlier / "runs" / "default", out / "earlier" / "run")
    do, made, default = Maker(out, code, only), out / "fixtures", out / "runs" / "default"
    do.workflow("default", "training", "train.json", output_dir=default)
    do.vivid("bundle", "bundle", default, "--out", out / BUNDLE)
    phantoms = out / "phantoms"
    if not phantoms.exists():
        phantoms.mkdir()
        for file in sorted((out / "data" / "phantom" / "images").rglob("*.png"))[:40]:
            shutil.copyfile(file, phantoms / file.name)
    bundles = {"answers": out / BUNDLE} | ({"answers_by_earlier": out / "earlier" / BUNDLE} if earlier else {})
    for name, bundle in bundles.items():
        for kind in ("mixed", "phantoms"):
            do.vivid(f"{name}_{kind}", "predict", out / kind, "--bundle", bundle, "--out", out / name / kind)
    do.vivid("prepare_nih", "prepare", "nih", data / "nih", "--out", out / "data" / "nih")
    steps = {"max_epochs": 1, "epoch_length": 50, "warmup_steps": 10}
    do.workflow("nih", "training", "train.json", "data/nih.json", output_dir=out / "runs" / "nih", **steps)
    encoder = (out / "earlier" / "run" if earlier else default) / "pretrained_vit.safetensors"
    small = {"phantom_images": 600, "phantom_size": 64, "dataset_dir": out / "data" / "p600", "encoder": encoder}
    do.evaluate("phantom", "phantom", **small)
    do.evaluate("knn", "phantom", probe="knn", **small)
    for task, name in (("table", "table"), ("chexpert_probe", "chexpert"), ("nih_probe", "nih_made")):
        do.evaluate(task, task, encoder=encoder, dataset_dir=made / name)
    do.evaluate("organamnist", "organamnist", encoder=encoder, dataset_dir=made / "organamnist")
    for slices in (1, 3):
        do.evaluate(f"lidc{slices}", "lidc_malignancy", encoder=encoder, dataset_dir=made / "lidc", slices=slices)
    both = {"source_dir": made / "chexpert", "dataset_dir": made / "nih_made"}
    do.evaluate("nih_transfer", "nih_transfer", encoder=encoder, **both)
    do.evaluate("nih_real", "nih_probe", encoder=encoder, dataset_dir=out / "data" / "nih")


def make_fixtures(folder: Path, code: Path) -> None:
    """Small data sets as prepared manifests (docs/data.md): findings are bright spots, nodules are dense."""
    for number, (name, space) in enumerate(SPACES.items()):
        root = folder / name
        (root / "images").mkdir(parents=True)
        fields, exclusive = label_space(code, space)
        rng, n = np.random.default_rng(number), 180
        if exclusive:
            states = np.eye(len(fields), dtype=int)[rng.integers(0, len(fields), n)]
        else:
            states = (rng.random((n, len(fields))) < 0.4).astype(int)
        rows = []
        for i in range(n):
            image = rng.integers(60, 100, (64, 64), dtype=np.uint8)
            for f in np.flatnonzero(states[i]):
                image[f % 4 * 16 : f % 4 * 16 + 12, f // 4 * 16 : f // 4 * 16 + 12] = 220
            Image.fromarray(image).save(root / "images" / f"{i:03d}.png")
            row = {"id": f"{name}-{i:03d}", "image": f"images/{i:03d}.png", "patient_id": f"{name}-p{i // 3}"}
            row |= {"split": ("train", "train", "val", "test", "test")[i // 3 % 5], "dataset": name, "modality": "DX"}
            row |= {f"finding.{field}": int(state) for field, state in zip(fields, states[i], strict=True)}
            rows.append(row | {"anatomy": "chest", "labeller": "made", "source": "human"})
        write_manifest(rows, space, root)
    rng, root, rows = np.random.default_rng(0), folder / "lidc", []
    (root / "crops").mkdir(parents=True)
    for i in range(120):
        state = i % 2 if i % 5 else 2
        volume = rng.normal(-700 + 300 * (state == 1), 200, (20, 20, 3)).astype(np.int16)
        nibabel.Nifti1Image(volume, np.eye(4)).to_filename(root / "crops" / f"{i}.nii")
        row = {"id": f"n{i}", "image": f"crops/{i}.nii", "slice": 1, "slices": 3, "patient_id": f"p{i}"}
        row |= {"split": ("train", "train", "val", "test", "test", "test")[i % 6], "dataset": "lidc", "modality": "CT"}
        rows.append(row | {"anatomy": "chest", "labeller": "readers", "source": "human", "finding.Malignancy": state})
    write_manifest(rows, "lidc-malignancy", root)


def label_space(code: Path, name: str) -> tuple[list[str], bool]:
    """The fields of a label space of the checkout, and whether they exclude each other."""
    said = "from vivid_monai.ums.label_space import load_label_space as load; import json, sys; s = load(sys.argv[1]); "
    said += "print(json.dumps([list(s.fields), s.exclusive]))"
    done = subprocess.run([sys.executable, "-c", said, name], cwd=code, capture_output=True, text=True, check=True)
    fields, exclusive = json.loads(done.stdout)
    return fields, exclusive


def write_manifest(rows: list[dict], space: str, root: Path) -> None:
    """Rows as the Parquet file that ``vivid prepare`` writes."""
    meta = {"manifest_version": "1.0", "label_space": space, "image_root": ".", "splits": {}, "sources": [], "card": {}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({b"vivid_monai": json.dumps(meta).encode()})
    pq.write_table(table, root / "manifest.parquet")


def make_mixed(folder: Path, data: Path) -> None:
    """Real files of all kinds and four damaged ones."""
    folder.mkdir(parents=True)
    files = sorted((data / "nih" / "images_001" / "images").glob("*.png"))[:24]
    for part, most in (("nih_fullsize", 4), ("cr_dicom", 2), ("covid/images", 16), ("ct/dicom_series", 4)):
        files += sorted(file for file in (data / part).iterdir() if file.suffix != ".txt")[:most]
    files += sorted((data / "kermany" / "images").iterdir())[:6]
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / f"{number:02d}_{file.name}")
    for number, cut in enumerate((0, 40, 2000, 9000)):
        (folder / f"9{number}_cut.png").write_bytes(files[number].read_bytes()[:cut])


def compare(first: Path, second: Path) -> int:
    """Print the largest difference in every result; 1 where one exceeds 1e-6 or a result is missing, else 0."""
    of_first, of_second = (dict(results(folder)) for folder in (first, second))
    bad, worst, compared = 0, 0.0, 0
    for name in sorted(of_first.keys() | of_second.keys()):
        one = of_first.get(name.replace("answers_by_earlier", "answers"))
        other = of_second.get(name)
        compared += 1
        if one is None or other is None:
            print(f"MISSING  {name} in {first if one is None else second}")
            bad += 1
        elif isinstance(one, str) or isinstance(other, str) or one.shape != other.shape:
            if not (isinstance(one, str) and isinstance(other, str) and one == other):
                print(f"DIFFERS  {name}")
                bad += 1
        elif off := largest_difference(one, other):
            print(f"{'DIFFERS' if off > 1e-6 else 'close  '}  {name}: {off:.2e}")
            worst, bad = max(worst, off), bad + (off > 1e-6)
    print(f"{compared} results: {bad} differ by more than 1e-6 or are missing; the largest difference is {worst:.2e}")
    return int(bad > 0)


def largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Of two arrays of one shape; infinite where one of them alone is NaN."""
    same_gaps = (np.isnan(one) == np.isnan(other)).all()
    return float(np.nanmax(np.abs(one - other), initial=0)) if same_gaps else float("inf")


def results(folder: Path) -> Iterator[tuple[str, np.ndarray | str]]:
    """Name → numbers or text of every result in a folder of :func:`make`."""
    where = str(folder.absolute())
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if name.startswith(INPUTS) or "/checkpoints/" in name or "features" in name:
            continue
        if file.name in ("curves.csv", "metrics.csv", "predictions.csv"):
            with file.open(newline="") as lines:
                head, *rows = csv.reader(lines)
            for column, title in enumerate(head):
                cells = [row[column].replace(where, "") for row in rows]
                try:
                    yield f"{name}:{title}", np.array([float(cell) if cell else np.nan for cell in cells])
                except ValueError:
                    if title not in ("reason", "overlay", "report"):
                        yield f"{name}:{title}", "\n".join(cells)
        elif file.suffix == ".safetensors":
            for key, value in load_file(file).items():
                yield f"{name}:{key}", value.astype(np.float64)
        elif file.name == "records.jsonl":
            yield name, file.read_text().replace(where, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    making = commands.add_parser("make")
    making.add_argument("out", type=Path)
    making.add_argument("--code", type=Path, required=True, help="the checkout to run")
    making.add_argument("--data", type=Path, required=True, help="the folder of small real data sets")
    making.add_argument("--earlier", type=Path, help="what an earlier version made")
    making.add_argument("--only", default="", help="steps whose name starts with this")
    comparing = commands.add_parser("compare")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    args = parser.parse_args()
    if args.command == "compare":
        return compare(args.first, args.second)
    make(args.out.absolute(), args.code.absolute(), args.data.absolute(), args.earlier, args.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
