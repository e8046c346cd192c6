"""What the tests of the MONAI Label app share. The app runs in MONAI Label's own environment, the tests in ours."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.deploy.conftest import NAME, make_run
from tests.deploy.made_dicom import dicom
from vivid_monai.deploy.bundle import build_bundle
from vivid_monai.deploy.calibration import CalibratedModel, load_calibrated
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.predict import predict
from vivid_monai.ums.label_space import load_label_space

VARIABLE = "VIVID_MONAILABEL_PYTHON"


@pytest.fixture(scope="session", autouse=True)
def label_python() -> str:
    """The Python of MONAI Label's environment, or a skip that says how to make one."""
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(f"${VARIABLE} names no Python with MONAI Label: python scripts/check_monailabel.py --env DIR")
    assert os.access(python, os.X_OK), f"${VARIABLE}: {python} is no program"
    return python


@pytest.fixture(scope="session")
def finished(label_python, tmp_path_factory) -> CalibratedModel:
    """A finished run."""
    return load_calibrated(make_run(tmp_path_factory.mktemp("finished")))


@pytest.fixture(scope="session")
def bundle(finished, tmp_path_factory) -> Path:
    """The bundle of it."""
    return build_bundle(finished, tmp_path_factory.mktemp("bundle") / NAME)


@pytest.fixture(scope="module")
def own_bundle(bundle, tmp_path_factory) -> Path:
    """A copy of the bundle for one server."""
    return shutil.copytree(bundle, tmp_path_factory.mktemp("served") / bundle.name)


def make_images(finished: CalibratedModel, folder: Path, n: int) -> tuple[list[Path], np.ndarray]:
    """n test images that are assessed, as PNG, JPEG, DICOM MONOCHROME2 and 1 in turn, and their states (n, F).

    Every three DICOM images are of one patient.
    """
    folder.mkdir(parents=True, exist_ok=True)
    test, paths = finished.manifest.select("test"), []
    rows = np.flatnonzero(finished.ood.accepts(finished.thumbnails["test"]))[:n]
    for i, row in enumerate(rows):
        with Image.open(finished.manifest.image_root / test.table["image"][int(row)].as_py()) as image:
            pixels = np.asarray(image)
        paths.append(folder / f"made{i:03d}.{('png', 'jpeg', 'dcm', 'dcm')[i % 4]}")
        if i % 4 < 2:
            Image.fromarray(pixels).save(paths[-1], **({"quality": 95} if i % 4 else {}))
        else:
            dicom(paths[-1], inverted=i % 4 == 3, seed=i, pixels=pixels, PatientID=f"p{i // 6}")
    return paths, finished.test.states[rows]


def probabilities(bundle: Path, paths: list[Path], folder: Path) -> dict[str, np.ndarray]:
    """What `vivid predict` says: file name → probabilities (F,)."""
    entries = predict(BundleModel(bundle), find_inputs(paths), folder).entries
    assert all(entry.status == "answered" for entry in entries), entries
    return {Path(entry.image.path).name: np.array(entry.probabilities) for entry in entries}


def said(answer: dict) -> np.ndarray:
    """The probabilities (F,) of an answer of the server."""
    assert answer["status"] == "answered", answer
    return np.array([one["probability"] for one in answer["findings"].values()])


def words(fields: list[str], states: np.ndarray) -> dict[str, str | None]:
    """State codes (F,) as what a reader may say. The made states know no hierarchy: where a kind of it is present, what
    is absent becomes uncertain."""
    told = {0: "absent", 1: "present", 2: "uncertain", -1: None}
    findings = {field: told[int(state)] for field, state in zip(fields, states, strict=True)}
    for field in [field for field, state in findings.items() if state == "present"]:
        for above in load_label_space("chexpert-12").ancestors(field):
            if findings.get(above) == "absent":
                findings[above] = "uncertain"
    return findings
