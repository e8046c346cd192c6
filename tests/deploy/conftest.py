"""A finished training run, made without training: features of random weights that a head can be fitted on."""

import json
import sys
from pathlib import Path

import pytest

from tests.deploy.small import FIELDS, PREPROCESS, make_classifier
from tests.evaluation.small import data_set, encoder
from vivid_monai.data.manifest import Manifest
from vivid_monai.deploy.bundle import build_bundle
from vivid_monai.deploy.calibration import CalibratedModel, load_calibrated
from vivid_monai.deploy.export import export_onnx
from vivid_monai.evaluation.evaluate import evaluate
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.task import Task
from vivid_monai.evaluation.workflows import write_evaluation
from vivid_monai.networks.modules import save_module

NAME = "made_xray_vit_classification"


@pytest.fixture
def own_modules(tmp_path_factory, monkeypatch):
    """transformers keeps the code of folders in a place of its own."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    monkeypatch.setattr("sys.path", [*sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


def make_run(
    folder: Path, *, n: int = 600, space: str = "chexpert-12", fields=None, change=None, make=encoder, kind="vit"
) -> Path:
    """The folder of a finished run, with its data beside it.

    ``change``: from its manifest to another one. ``make``: an encoder of a seed, whose backbone is of this ``kind``.
    """
    manifest = data_set(folder / "data", n=n, space=space, splits=("train", "train", "val", "test"))
    if change:
        change(manifest).save(folder / "data" / "manifest.parquet")
        manifest = Manifest.load(folder / "data" / "manifest.parquet")
    run, encoders = folder / "run", {"pretrained": [make(1)], "untrained": [make(2)]}
    task = Task(name="made", manifest=manifest, fields=fields or manifest.fields)
    evaluated = evaluate(encoders, task, FeatureStore(None), n_resamples=50)
    write_evaluation(evaluated, task, run, shown=encoders["pretrained"][0], n_examples=0)
    one = encoders["pretrained"][0]
    save_module(
        one.network,
        run / "pretrained_vit.safetensors",
        kind=kind,
        preprocess=one.preprocess.to_dict(),
        fields=task.fields,
    )
    (run / "config.json").write_text(json.dumps({"pool": one.pool}))
    return run


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A finished run."""
    return make_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def finished(run) -> CalibratedModel:
    """What is known of it."""
    return load_calibrated(run)


@pytest.fixture(scope="session")
def bundle_folder(finished, tmp_path_factory) -> Path:
    """The bundle of it."""
    return build_bundle(finished, tmp_path_factory.mktemp("bundles") / NAME, onnx="float32")


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory) -> Path:
    """The file of ``make_classifier()``."""
    path = tmp_path_factory.mktemp("onnx") / "classifier.onnx"
    return export_onnx(make_classifier(), path, preprocess=PREPROCESS, fields=FIELDS)
