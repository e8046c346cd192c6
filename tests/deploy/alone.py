"""A bundle run where this package cannot be imported."""

import json
from pathlib import Path

from tests.processes import run_code
from vivid_monai.deploy.calibration import CalibratedModel


def alone(code: str, *, cwd: Path) -> str:
    """Run Python code in a process that cannot import vivid_monai; returns what it printed."""
    done = run_code(code, cwd=cwd, without="vivid_monai")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def run_bundle(folder: Path, *configs: str, **knobs) -> str:
    """``monai.bundle run`` of a bundle from its own folder, without this package."""
    files = [f"configs/{name}" for name in configs]
    knobs = {key: str(value) if isinstance(value, Path) else value for key, value in knobs.items()}
    return alone(f"import monai.bundle\nmonai.bundle.run(config_file={files!r}, **{knobs!r})\n", cwd=folder)


def datalist(finished: CalibratedModel, path: Path) -> None:
    """Training and validation images of a run as the datalist of a bundle."""
    lists = {}
    for name, split in (("training", "train"), ("validation", "test")):
        items = finished.manifest.select(split).items(finished.fields)
        lists[name] = [{"image": one["image"], "label": one["states"].tolist()} for one in items]
    lists["training"][0]["label"][0] = -1
    path.write_text(json.dumps(lists))
