"""The bundle in this repository holds what the code writes, and runs. How to make it again: bundle/README.md."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tests.deploy.alone import run_bundle
from vivid_monai.deploy.bundle import bundle_configs, module_files, network_config
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.predict import predict
from vivid_monai.prepare.phantoms import prepare

FOLDER = Path(__file__).parents[2] / "bundle" / "chest_phantom_vit_classification"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Images of phantoms that it has not seen."""
    folder = tmp_path_factory.mktemp("phantoms")
    prepare(folder, n=24, seed=99, size=112)
    return folder / "images"


def test_scripts_and_configs_are_those_of_the_code():
    for name, text in module_files().items():
        assert (FOLDER / "scripts" / name).read_text() == text, name
    model = BundleModel(FOLDER)
    for name, config in bundle_configs(network_config(model.classifier), model.preprocess).items():
        assert json.loads((FOLDER / "configs" / name).read_text()) == config, name


def test_was_built_with_the_versions_that_are_tested():
    metadata = json.loads((FOLDER / "configs" / "metadata.json").read_text())
    assert metadata["monai_version"] == version("monai")
    assert metadata["pytorch_version"] == version("torch").split("+")[0]


def test_both_runtimes_and_the_bundle_itself_answer_alike(phantoms, tmp_path):
    inputs = find_inputs([phantoms])
    onnx, torch = (
        predict(BundleModel(FOLDER, runtime=one), inputs, tmp_path / one).entries for one in ("onnx", "torch")
    )
    assert [one.status for one in onnx] == [one.status for one in torch]
    answered = [one for one in zip(onnx, torch, strict=True) if one[0].status == "answered"]
    assert len(answered) > len(inputs) / 2
    for one, other in answered:
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=1e-4)
    folder = shutil.copytree(FOLDER, tmp_path / FOLDER.name)
    run_bundle(folder, "inference.json", dataset_dir=phantoms, output_dir=tmp_path / "bundle")
    records = [json.loads(line) for line in (tmp_path / "bundle" / "records.jsonl").read_text().splitlines()]
    by_name = {Path(entry.image.path).name: entry for entry in torch}
    fields = BundleModel(FOLDER).fields
    assert len(records) == len(answered)
    for record in records:
        probabilities = dict(zip(fields, by_name[Path(record["image"]["path"]).name].probabilities, strict=True))
        for field, finding in record["findings"].items():
            if finding["state"] is not None:
                assert finding["score"] == pytest.approx(probabilities[field], abs=2e-6)
