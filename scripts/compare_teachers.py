"""Pretrain on real data with several teachers and seeds, and write what came out to a page of results.

    vivid prepare nih ROOT --out data/nih --val 0.15 --test 0.3
    python scripts/compare_teachers.py nih=data/nih nih64=data/nih64 --seeds 0 1 2 --page docs/results.md

Each name=folder holds a manifest of `vivid prepare`. Every run is the bundle's own job in a process of its own; a run
whose metrics are there is not repeated. All numbers of the page come from the runs' files.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from vivid_monai.files import whole_file
from vivid_monai.metrics.intervals import bootstrap_auroc, paired_bootstrap_auroc
from vivid_monai.metrics.masked import counts, macro, masked_auroc
from vivid_monai.ums.states import encode

ARMS = {"LM teacher": "tiny", "random LM": "random", "no LM": "none"}
UNTRAINED = "untrained ViT"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME=FOLDER", help="a name and the folder of its manifest.parquet")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["LM teacher", "no LM"])
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/compare"), help="where the runs go (default: %(default)s)"
    )
    parser.add_argument(
        "--page", type=Path, default=Path("docs/results.md"), help="the page to write (default: %(default)s)"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="knobs of configs/train.json to override"
    )
    args = parser.parse_args()
    sections = []
    for name, folder in (item.split("=", 1) for item in args.data):
        runs = {arm: [run(name, folder, arm, seed, args) for seed in args.seeds] for arm in args.arms}
        sections.append(section(name, runs, args.seeds))
    with whole_file(args.page) as part:
        part.write_text(PREFACE.format(command=" ".join(["python", *sys.argv])) + "\n".join(sections))
    print(f"written: {args.page}")


def run(name: str, folder: str, arm: str, seed: int, args: argparse.Namespace) -> Path:
    """One run of the bundle's main job; returns its folder."""
    output = args.runs / name / f"{ARMS[arm]}-{seed}"
    if (output / "metrics.json").exists():
        return output
    configs = ["configs/train.json", "configs/data/nih.json", f"configs/teacher/{ARMS[arm]}.json"]
    knobs = {"dataset_dir": folder, "seed": str(seed), "output_dir": str(output), "name": name}
    knobs |= dict(pair.split("=", 1) for pair in args.set)
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(configs)]
    started = time.monotonic()
    subprocess.run([*command, *(part for key, value in knobs.items() for part in (f"--{key}", value))], check=True)
    (output / "seconds.txt").write_text(f"{time.monotonic() - started:.0f}\n")
    return output


def read_predictions(run: Path) -> tuple[list[str], np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Fields, patients (N,), states (N, F) and scores (N, F) by encoder, of a run's test images."""
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    fields = [column.removeprefix("state:") for column in rows[0] if column.startswith("state:")]
    states = np.array([[encode(row[f"state:{field}"] or None) for field in fields] for row in rows])
    scores = {
        name: np.array([[float(row[f"{name}:{field}"]) for field in fields] for row in rows])
        for name in ("pretrained", "untrained")
    }
    return fields, np.array([row["patient_id"] for row in rows]), states, scores


def section(name: str, runs: dict[str, list[Path]], seeds: list[int]) -> str:
    """The Markdown section of one data set."""
    scores: dict[str, list[np.ndarray]] = {}
    for arm, folders in runs.items():
        for folder in folders:
            fields, patients, states, by_encoder = read_predictions(folder)
            scores.setdefault(arm, []).append(by_encoder["pretrained"])
            if arm == next(iter(runs)):
                scores.setdefault(UNTRAINED, []).append(by_encoder["untrained"])
    stacked = {arm: np.stack(several) for arm, several in scores.items()}
    n_present, n_absent = counts(states)
    intervals = {arm: bootstrap_auroc(several, states, patients) for arm, several in stacked.items()}
    aurocs = {arm: np.stack([masked_auroc(one, states) for one in several]) for arm, several in stacked.items()}

    lines = [f"## {name}", ""]
    lines += [f"{len(states)} test images of {len(np.unique(patients))} patients; {len(seeds)} seeds ({seeds}).", ""]
    lines += ["| finding | n+ | n− | " + " | ".join(stacked) + " |", "|---|---|---|" + "---|" * len(stacked)]
    for f, field in enumerate(fields):
        cells = [cell(aurocs[arm][:, f].mean(), intervals[arm].fields[f]) for arm in stacked]
        lines.append(f"| {field} | {n_present[f]} | {n_absent[f]} | " + " | ".join(cells) + " |")
    macros = {arm: [macro(auroc, n_present, n_absent)[0] for auroc in aurocs[arm]] for arm in stacked}
    cells = [cell(float(np.mean(macros[arm])), intervals[arm].macro) for arm in stacked]
    lines.append("| **macro** | | | " + " | ".join(cells) + " |")
    lines.append(
        "| macro, each seed | | | " + " | ".join(", ".join(f"{m:.3f}" for m in macros[arm]) for arm in stacked) + " |"
    )
    excluded = intervals[UNTRAINED].excluded
    if excluded:
        lines += ["", f"Not in the macro average (under 10 of one state): {', '.join(fields[f] for f in excluded)}."]
    lines += ["", "| difference of macro AUROC | value (95 % CI) | shown |", "|---|---|---|"]
    arms = [arm for arm in stacked if arm != UNTRAINED]
    for first, second in [*((arm, UNTRAINED) for arm in arms), *((arms[0], arm) for arm in arms[1:])]:
        paired = paired_bootstrap_auroc(stacked[first], stacked[second], states, patients)
        low, high = paired.interval
        shown = "no: the interval holds 0" if low <= 0 <= high else "yes"
        lines.append(f"| {first} − {second} | {paired.difference:+.3f} ({low:+.3f} to {high:+.3f}) | {shown} |")
    seconds = {arm: [int((folder / "seconds.txt").read_text()) for folder in folders] for arm, folders in runs.items()}
    times = "; ".join(f"{arm} {np.mean(values):.0f} s" for arm, values in seconds.items())
    command = json.loads((next(iter(runs.values()))[0] / "metrics.json").read_text())["command"]
    lines += ["", f"Mean wall time of a run, all included: {times}. The first run's command:", "", f"    {command}", ""]
    return "\n".join(lines)


def cell(value: float, interval: np.ndarray) -> str:
    """``.712 (.640–.781)``."""
    return f"{value:.3f} ({interval[0]:.3f}–{interval[1]:.3f})" if np.isfinite(value) else "–"


PREFACE = """# Results on small real data

Written by `{command}`.

Per finding: AUROC of a linear head on the frozen ViT, on test patients that no step of training, no choice of
regularisation and no other choice has seen. A cell is the mean over the seeds; its 95 % interval is a bootstrap over
the test patients, of that mean. Patients are split by their salted hash, once and for all seeds. "Untrained ViT" is the
same network before pretraining, with a head fitted in the same way. The wall times come from a busy machine.

The data are small subsets of NIH ChestX-ray14 (`vivid prepare nih ROOT --out data/NAME --val 0.15 --test 0.3`): `nih`
holds 730 images of 256 px, half of them normal and half with pneumonia, `nih64` 655 others of 64 px. They show that the
job runs on real images, and how much a few hundred of them can say, not what the method reaches.

"""

if __name__ == "__main__":
    main()
