"""What the main job spends before its first step, and how fast it steps in one process and in two.

    python scripts/bench_job.py

The job is `python -m monai.bundle run training --config_file configs/train.json`, with its phantoms drawn beforehand
and few steps, each time in new processes; the ways take turns, and a figure is the median over the turns. When a step
ended is read from the run's own TensorBoard file. Imports are Python's own count (`-X importtime`), each package with
what it imports by itself, but not with what other packages do for it.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from vivid_monai.engines.matrix import step_ends

ROOT = Path(__file__).parents[1]
IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\w+)")
STARTS = {"python": "pass", "import torch": "import torch", "import monai.bundle": "import monai.bundle"}
WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every way (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of a run for its speed (default: %(default)s)")
    parser.add_argument("--skip", type=int, default=40, help="steps that warm up, not counted (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first_step(Path(folder))  # draws the phantoms, and fills the system's cache of files
        starts: dict[str, list[float]] = {name: [] for name in [*STARTS, "the job, to the end of its first step"]}
        speeds: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(args.rounds):
            for name, program in STARTS.items():
                starts[name].append(until_end_of(program))
            starts["the job, to the end of its first step"].append(first_step(Path(folder)))
            for name, (processes, threads) in WAYS.items():
                ended = job(Path(folder), args.steps, processes=processes, threads=threads)[1]
                speeds[name].append(16 * (len(ended) - args.skip) / (ended[-1] - ended[args.skip - 1]))
        imported = imports(Path(folder))
    print("\n| start-up | s |\n|---|---|")
    for name, seconds in starts.items():
        print(f"| {name} | {statistics.median(seconds):.2f} |")
    print("\n| imported by the job | s |\n|---|---|")
    for name, spent in imported.most_common(12):
        print(f"| {name} | {spent:.2f} |")
    print(f"| all {len(imported)} packages | {sum(imported.values()):.2f} |")
    print("\n| 16 images of a step | images/s | |\n|---|---|---|")
    alone = statistics.median(next(iter(speeds.values())))
    for name, rates in speeds.items():
        print(f"| {name} | {statistics.median(rates):.0f} | {statistics.median(rates) / alone:.2f}× |")


def until_end_of(program: str) -> float:
    """Seconds from the start of a Python to the end of a program, without what leaving Python takes."""
    command, started = [sys.executable, "-c", f"{program}\nimport time\nprint(time.time())"], time.time()
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(told.stdout.split()[-1]) - started


def first_step(folder: Path) -> float:
    """Seconds from the start of the process to the end of its first step."""
    started, ended, _ = job(folder, steps=1)
    return ended[0] - started


def imports(folder: Path) -> Counter[str]:
    """Seconds that each package's own modules take to import."""
    told = job(folder, steps=1, python=("-X", "importtime"))[2]
    spent: Counter[str] = Counter()
    for microseconds, package in IMPORT.findall(told):
        spent[package] += int(microseconds) / 1e6
    return spent


def job(
    folder: Path,
    steps: int,
    *,
    processes: int = 1,
    threads: int | None = None,
    python: tuple[str, ...] = (),
    overlays: tuple[str, ...] = (),
    more: dict[str, Any] | None = None,
) -> tuple[float, list[float], str]:
    """Run the job; when it was started, when each step ended (seconds of the clock), and what it told on stderr.

    Args:
        folder: where its data, which stay, and its output go.
        overlays: more configs, by their names in configs/.
        more: knobs besides.
    """
    output = tempfile.mkdtemp(dir=folder)
    knobs = {
        "bundle_root": folder,
        "output_dir": output,
        "max_epochs": 1,
        "epoch_length": steps,
        "warmup_steps": 0,
        "val_interval": steps + 1,
        "training": "['$run_training(@train#trainer)']",  # and no evaluation after it
        **(more or {}),
    }
    names = ["train.json", *overlays, *["multi_gpu_train.json"] * (processes > 1)]
    configs = [ROOT / "configs" / name for name in names]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *python, *launcher, "-m", "monai.bundle", "run", "training"]
    command += ["--config_file", str([str(config) for config in configs])]
    command += [part for key, value in knobs.items() for part in (f"--{key}", str(value))]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    started = time.time()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{done.stderr.strip().splitlines()[-1]}\nin: {' '.join(command)}\n{done.stderr[-3000:]}")
    return started, step_ends(Path(output)), done.stderr


if __name__ == "__main__":
    main()
