"""Golden results: what users get from the commands, so that a change of structure can be shown to change nothing.

    python scripts/golden.py make  OUT --code CHECKOUT --data REAL_DATA    # run everything with the code of a checkout
    python scripts/golden.py make  NEW --code .        --data REAL_DATA --from OUT   # with OUT's fixtures and bundle
    python scripts/golden.py compare OUT NEW

``make`` runs, on one thread and with fixed seeds, only commands of the README: the default run, ``vivid bundle`` of it,
``vivid predict`` on 60 mixed files of the real data, 50 steps on the NIH images, and every evaluation task. With
``--from`` the manifests and the bundle that the earlier version wrote are read again, which is a test of their own.
``compare`` lists the largest difference of every number in every file that both have.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import load_file

SPACES = {"chexpert": "chexpert-14", "nih_made": "nih-14", "organamnist": "organamnist-11", "table": "chexpert-12"}
FEW = ("--min_present", "5", "--min_absent", "5", "--n_resamples", "100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    make_ = commands.add_parser("make")
    make_.add_argument("out", type=Path)
    make_.add_argument("--code", type=Path, required=True)
    make_.add_argument("--data", type=Path, required=True)
    make_.add_argument("--from", dest="earlier", type=Path)
    make_.add_argument("--only", default="")
    compare_ = commands.add_parser("compare")
    compare_.add_argument("first", type=Path)
    compare_.add_argument("second", type=Path)
    args = parser.parse_args()
    if args.command == "make":
        make(args.out.absolute(), args.code.absolute(), args.data.absolute(), args.earlier, args.only)
    else:
        sys.exit(compare(args.first, args.second))


def make(out: Path, code: Path, data: Path, earlier: Path | None, only: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}

    def run(name: str, *command: str) -> None:
        if only and not name.startswith(only):
            return
        started = time.perf_counter()
        full = [sys.executable, "-m", *command]
        with (out / f"{name}.log").open("w") as log:
            rc = subprocess.run(full, cwd=out, env=env, stdout=log, stderr=subprocess.STDOUT).returncode
        print(f"{name}: rc {rc}, {time.perf_counter() - started:.0f} s", flush=True)

    def bundle(name: str, workflow: str, *files: str, **knobs: object) -> None:
        config = str([str(code / "configs" / file) for file in files])
        options = [part for key, value in knobs.items() for part in (f"--{key}", str(value))]
        few = () if workflow == "training" else FEW
        run(name, "monai.bundle", "run", workflow, "--config_file", config, "--bundle_root", str(out), *options, *few)

    if not (out / "fixtures").exists():
        if earlier is None:
            fixtures(out / "fixtures")
            mixed(out / "mixed", data)
        else:
            shutil.copytree(earlier / "fixtures", out / "fixtures", copy_function=shutil.copy2)
            shutil.copytree(earlier / "mixed", out / "mixed", copy_function=shutil.copy2)
            shutil.copytree(earlier / "chest_classification", out / "bundle_earlier", copy_function=shutil.copy2)
            shutil.copytree(earlier / "runs" / "default", out / "run_earlier", copy_function=shutil.copy2)
    cli = "vivid_monai.cli"
    made = out / "fixtures"
    default = out / "runs" / "default"
    bundle("default", "training", "train.json", output_dir=default)
    run("bundle", cli, "bundle", str(default), "--out", str(out / "chest_classification"))
    run("predict", cli, "predict", str(out / "mixed"), "--bundle", str(out / "chest_classification"), "--out", str(out / "answers"))
    if earlier is not None:
        old = out / "bundle_earlier"
        run("predict_old", cli, "predict", str(out / "mixed"), "--bundle", str(old), "--out", str(out / "answers_old"))
    run("prepare_nih", cli, "prepare", "nih", str(data / "nih"), "--out", str(out / "data" / "nih"))
    bundle("nih", "training", "train.json", "data/nih.json", output_dir=out / "runs" / "nih", max_epochs=1, epoch_length=50, warmup_steps=10)
    encoder = default / "pretrained_vit.safetensors"
    if earlier is not None:
        encoder = out / "run_earlier" / "pretrained_vit.safetensors"
    bundle("eval_phantom", "evaluating", "evaluate.json", "eval/phantom.json", encoder=encoder, phantom_images=600, phantom_size=64, dataset_dir=out / "data" / "p600", output_dir=out / "eval" / "phantom")
    bundle("eval_knn", "evaluating", "evaluate.json", "eval/phantom.json", encoder=encoder, probe="knn", phantom_images=600, phantom_size=64, dataset_dir=out / "data" / "p600", output_dir=out / "eval" / "knn")
    for task, name in (("table", "table"), ("chexpert_probe", "chexpert"), ("nih_probe", "nih_made"), ("organamnist", "organamnist"), ("lidc_malignancy", "lidc")):
        bundle(f"eval_{task}", "evaluating", "evaluate.json", f"eval/{task}.json", encoder=encoder, dataset_dir=made / name, output_dir=out / "eval" / task)
    bundle("eval_lidc3", "evaluating", "evaluate.json", "eval/lidc_malignancy.json", encoder=encoder, dataset_dir=made / "lidc", slices=3, output_dir=out / "eval" / "lidc3")
    bundle("eval_nih_transfer", "evaluating", "evaluate.json", "eval/nih_transfer.json", encoder=encoder, source_dir=made / "chexpert", dataset_dir=made / "nih_made", output_dir=out / "eval" / "nih_transfer")
    bundle("eval_nih_real", "evaluating", "evaluate.json", "eval/nih_probe.json", encoder=encoder, dataset_dir=out / "data" / "nih", output_dir=out / "eval" / "nih_real")


def fixtures(folder: Path) -> None:
    """Small data sets in the form of a prepared manifest (docs/data.md): the findings are bright spots."""
    sys.path.insert(0, os.environ.get("GOLDEN_CODE", "."))
    for number, (name, space) in enumerate(SPACES.items()):
        root = folder / name
        (root / "images").mkdir(parents=True)
        fields, exclusive = _space(space)
        rng = np.random.default_rng(number)
        n = 180
        states = np.eye(len(fields), dtype=int)[rng.integers(0, len(fields), n)] if exclusive else rng.random((n, len(fields))) < 0.4
        rows = []
        for i in range(n):
            image = rng.integers(60, 100, (64, 64), dtype=np.uint8)
            for f in np.flatnonzero(states[i]):
                image[f % 4 * 16 : f % 4 * 16 + 12, f // 4 * 16 : f // 4 * 16 + 12] = 220
            Image.fromarray(image).save(root / "images" / f"{i:03d}.png")
            row = {"id": f"{name}-{i:03d}", "image": f"images/{i:03d}.png", "patient_id": f"{name}-p{i // 3}"}
            row |= {"split": ("train", "train", "val", "test", "test")[i // 3 % 5], "dataset": name, "modality": "DX"}
            row |= {"anatomy": "chest", "labeller": "made", "source": "human"}
            rows.append(row | {f"finding.{field}": int(state) for field, state in zip(fields, states[i], strict=True)})
        _manifest(rows, space, root)
    rng = np.random.default_rng(0)
    root = folder / "lidc"
    (root / "crops").mkdir(parents=True)
    rows = []
    for i in range(120):
        state = i % 2 if i % 5 else 2
        volume = rng.normal(-700 + 300 * (state == 1), 200, (20, 20, 3)).astype(np.int16)
        nibabel.Nifti1Image(volume, np.eye(4)).to_filename(root / "crops" / f"{i}.nii")
        row = {"id": f"n{i}", "image": f"crops/{i}.nii", "slice": 1, "slices": 3, "patient_id": f"p{i}"}
        row |= {"split": ("train", "train", "val", "test", "test", "test")[i % 6], "dataset": "lidc", "modality": "CT"}
        rows.append(row | {"anatomy": "chest", "labeller": "readers", "source": "human", "finding.Malignancy": state})
    _manifest(rows, "lidc-malignancy", root)


def _space(name: str) -> tuple[list[str], bool]:
    from vivid_monai.ums.label_space import load_label_space

    space = load_label_space(name)
    return list(space.fields), space.exclusive


def _manifest(rows: list[dict], space: str, root: Path) -> None:
    meta = {"manifest_version": "1.0", "label_space": space, "image_root": ".", "splits": {}, "sources": [], "card": {}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({b"vivid_monai": json.dumps(meta).encode()})
    pq.write_table(table, root / "manifest.parquet")


def mixed(folder: Path, data: Path) -> None:
    """60 files of all kinds, some of them damaged."""
    folder.mkdir(parents=True)
    files = [*sorted((data / "nih" / "images_001" / "images").glob("*.png"))[:24], *sorted((data / "nih_fullsize").glob("*.png"))[:4]]
    files += [*sorted((data / "cr_dicom").glob("*.dcm")), *sorted((data / "covid" / "images").iterdir())[:16]]
    files += [*sorted((data / "ct" / "dicom_series").iterdir())[:4], *sorted((data / "kermany" / "images").iterdir())[:6]]
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / f"{number:02d}_{file.name}")
    for number, cut in enumerate((0, 40, 2000, 9000)):
        (folder / f"9{number}_cut.png").write_bytes(files[number].read_bytes()[:cut])


def compare(first: Path, second: Path) -> int:
    """Print the largest difference in every result; returns 1 where something differs by more than 1e-6 or is missing."""
    a, b = (dict(numbers(folder)) for folder in (first, second))
    pairs = {**{name: name for name in a}, **{n: n.replace("answers_old", "answers") for n in b if n.startswith("answers_old")}}
    worst = 0.0
    bad = 0
    for name, of_first in sorted(pairs.items()):
        x = a.get(of_first)
        y = b.get(name)
        if x is None or y is None:
            print(f"MISSING  {name} in {'second' if y is None else 'first'}")
            bad += 1
        elif isinstance(x, str) or isinstance(y, str):
            if x != y:
                print(f"DIFFERS  {name}: {str(x)[:80]!r} / {str(y)[:80]!r}")
                bad += 1
        else:
            if x.shape != y.shape:
                print(f"DIFFERS  {name}: shapes {x.shape} {y.shape}")
                bad += 1
                continue
            off = float(np.nanmax(np.abs(x - y), initial=0)) if (np.isnan(x) == np.isnan(y)).all() else np.inf
            worst = max(worst, off)
            if off:
                bad += off > 1e-6
                print(f"{'DIFFERS' if off > 1e-6 else 'close  '}  {name}: {off:.2e}")
    print(f"{len(pairs)} results compared: {bad} differ by more than 1e-6, the largest difference is {worst:.2e}")
    return int(bad > 0)


def numbers(folder: Path):
    """(name, numbers or words) of all results in a folder."""
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if name.startswith(("fixtures", "mixed", "bundle_earlier", "run_earlier", "models", "data", "cache")) or "/checkpoints/" in name:
            continue
        if file.name in ("curves.csv", "metrics.csv", "predictions.csv"):
            with file.open(newline="") as rows:
                table = list(csv.reader(rows))
            for column, head in enumerate(table[0]):
                cells = [row[column] if column < len(row) else "" for row in table[1:]]
                if head in ("reason", "overlay", "report"):
                    continue
                try:
                    yield f"{name}:{head}", np.array([float(cell) if cell else np.nan for cell in cells])
                except ValueError:
                    yield f"{name}:{head}", "\n".join(cells).replace(str(folder.absolute()), "")
        elif file.suffix == ".safetensors" and "feature" not in name:
            for key, value in load_file(file).items():
                yield f"{name}:{key}", value.astype(np.float64)
        elif file.name == "records.jsonl":
            yield name, file.read_text().replace(str(folder.absolute()), "")


if __name__ == "__main__":
    main()
