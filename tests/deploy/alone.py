"""A bundle run where this package cannot be imported."""

import csv
import json
from pathlib import Path

import numpy as np

from tests.processes import run_code
from vivid_monai.cli import main
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


def check_every_way(finished: CalibratedModel, bundle: Path, folder: Path) -> None:
    """PyTorch, ONNX Runtime and the bundle by itself answer its test images as the calibrated model does."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    answered = [one["field"] for one in metadata["answers"]["fields"] if not one["unanswered"]]
    assert len(answered) > len(finished.fields) / 2
    columns = [finished.fields.index(field) for field in answered]
    test = finished.manifest.select("test").table["image"].to_pylist()
    expected = dict(zip(test, finished.probabilities(finished.test.x)[:, columns], strict=True))
    images = finished.manifest.image_root / "images"
    for way in ("onnx", "torch", "bundle"):
        out = folder / way
        if way == "bundle":
            run_bundle(bundle, "inference.json", dataset_dir=images, output_dir=out)
        else:
            assert main(["predict", str(images), "--bundle", str(bundle), "--out", str(out), "--runtime", way]) == 0
        with (out / "predictions.csv").open(newline="") as file:
            rows = {f"images/{Path(row['image']).name}": row for row in csv.DictReader(file)}
        told = [name for name in test if rows[name]["status"] == "answered"]
        assert len(told) > len(test) / 2
        got = [[float(rows[name][field]) for field in answered] for name in told]
        np.testing.assert_allclose(got, [expected[name] for name in told], rtol=0, atol=1e-4)
        assert np.ptp(got, axis=0).min() > 0.01
