"""A finished training run, made without training: features of random weights that a head can be fitted on."""

import json
from pathlib import Path

import pytest

from tests.evaluation.small import data_set, encoder
from vivid_monai.deploy.bundle.build import build_bundle
from vivid_monai.deploy.finished import Finished, load_finished
from vivid_monai.evaluation.evaluate import evaluate
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.task import Task
from vivid_monai.evaluation.workflows import write_evaluation
from vivid_monai.networks.modules import save_module

NAME = "made_xray_vit_classification"


def make_run(folder: Path, *, n: int = 600, space: str = "chexpert-12", fields=None) -> Path:
    """The folder of a finished run, with its data beside it."""
    manifest = data_set(folder / "data", n=n, space=space, splits=("train", "train", "val", "test"))
    run, encoders = folder / "run", {"pretrained": [encoder(1)], "untrained": [encoder(2)]}
    task = Task(name="made", manifest=manifest, fields=fields or manifest.fields)
    evaluated = evaluate(encoders, task, FeatureStore(None), n_resamples=50)
    write_evaluation(evaluated, task, run, shown=encoders["pretrained"][0], n_examples=0)
    one = encoders["pretrained"][0]
    save_module(
        one.vit, run / "pretrained_vit.safetensors", kind="vit", preprocess=one.preprocess.to_dict(), fields=task.fields
    )
    (run / "config.json").write_text(json.dumps({"pool": "cls"}))
    return run


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A finished run."""
    return make_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def finished(run) -> Finished:
    """What is known of it."""
    return load_finished(run, FeatureStore(None))


@pytest.fixture(scope="session")
def bundle_folder(finished, tmp_path_factory) -> Path:
    """The bundle of it."""
    return build_bundle(finished, tmp_path_factory.mktemp("bundles") / NAME, onnx="float32")
