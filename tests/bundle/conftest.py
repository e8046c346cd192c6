"""The bundle, run as a user runs it: its own command in a process of its own."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.processes import _to_the_end, quiet, run_module
from vivid_monai.engines import matrix

ROOT = Path(__file__).parents[2]
SMALL = {
    "phantom_images": 120,
    "image_size": 32,
    "batch_size": 8,
    "max_epochs": 2,
    "epoch_length": 4,
    "warmup_steps": 2,
    "save_every": 1,
    "min_present": 1,
    "min_absent": 1,
    "n_examples": 2,
    "evaluation#n_resamples": 50,
}


def bundle_command(*overlays: str, **knobs) -> list[str]:
    """The command of a small run; overlays are paths under configs/."""
    job = "finetuning" if "finetune.json" in overlays else "training"
    files = [str(ROOT / "configs" / name) for name in ("train.json", *overlays)]
    options = [
        part for key, value in {**SMALL, **knobs}.items() if value is not None for part in (f"--{key}", str(value))
    ]
    return ["-m", "monai.bundle", "run", job, "--config_file", str(files), *options]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A folder of phantoms that all small runs share."""
    from vivid_monai.prepare.phantoms import prepare

    root = tmp_path_factory.mktemp("phantoms") / "small"
    prepare(root, n=SMALL["phantom_images"], seed=0, size=SMALL["image_size"])
    return root


@pytest.fixture
def bundle(tmp_path, phantoms):
    """Function that runs the bundle in an empty folder and returns the finished process.

    It is a fork of a process with the imports done, or with `launcher` the very command of a user.
    """

    def run(
        *overlays: str, launcher: tuple[str, ...] | None = None, ranks: int = 1, **knobs
    ) -> subprocess.CompletedProcess:
        knobs = {"dataset_dir": phantoms, "output_dir": tmp_path / "run", "bundle_root": tmp_path, **knobs}
        command = bundle_command(*overlays, **knobs)
        if launcher is None:
            return run_module(command[1], command[2:], cwd=tmp_path, ranks=ranks)
        command = [sys.executable, *launcher, *command]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=quiet(), timeout=600)

    return run


@pytest.fixture
def forks(monkeypatch):
    """The processes of a matrix, forked where the imports are done; what they were."""
    started = []

    def run(command, *, env, stdout, stderr):
        started.append(command[3])
        done = _to_the_end(command[2], command[2:], Path.cwd(), 300, 1, "")
        stdout.write(done.stdout + done.stderr)
        return SimpleNamespace(returncode=done.returncode)

    monkeypatch.setattr(matrix.subprocess, "run", run)
    return started
