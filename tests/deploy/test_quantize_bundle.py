"""The ONNX file of a bundle: what answers, and what 8 bits may change."""

import hashlib
import json

import numpy as np
import pytest
from scipy.special import expit

from tests.deploy.conftest import NAME
from vivid_monai.deploy import quantize
from vivid_monai.deploy.bundle import build_bundle
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.onnx import OnnxClassifier
from vivid_monai.deploy.postprocessing import DecisionRules
from vivid_monai.deploy.quantize import write_int8
from vivid_monai.errors import VividError
from vivid_monai.metrics.masked import masked_auroc


@pytest.fixture(scope="module")
def rules(bundle_folder) -> DecisionRules:
    """Of the bundle."""
    return DecisionRules.of_bundle(bundle_folder / "configs" / "metadata.json")


@pytest.fixture
def anything_goes(monkeypatch):
    monkeypatch.setattr(quantize, "MOST", 1.0)


def val_images(finished) -> np.ndarray:
    transform = finished.preprocess.transform()
    return np.stack([np.asarray(transform(one)["image"]) for one in finished.manifest.select("val").items()])


def test_the_file_of_the_metadata_is_what_answers(bundle_folder):
    metadata = json.loads((bundle_folder / "configs" / "metadata.json").read_text())
    assert metadata["vivid"]["onnx"] == "float32"
    for runtime, file in (("onnx", "model.onnx"), ("torch", "model.pt")):
        model = BundleModel(bundle_folder, runtime=runtime)
        digest = hashlib.sha256((bundle_folder / "models" / file).read_bytes()).hexdigest()
        assert model.fingerprint == metadata["vivid"]["sha256"][f"models/{file}"] == digest
    assert BundleModel(bundle_folder).runtime == "onnx"
    assert "Its answers are those of `models/model.pt`" in (bundle_folder / "docs" / "README.md").read_text()


def test_a_bundle_without_onnx_answers_by_pytorch(finished, bundle_folder, tmp_path):
    folder = tmp_path / NAME
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "model.onnx").write_bytes(b"of a build before")
    build_bundle(finished, folder)
    assert not (folder / "models" / "model.onnx").exists()
    assert BundleModel(folder).runtime == "torch"
    assert "ONNX" not in (folder / "docs" / "README.md").read_text()
    with pytest.raises(VividError, match=r"was built without models/model\.onnx"):
        BundleModel(folder, runtime="onnx")


def test_eight_bits_tell_what_they_change(finished, rules, tmp_path, anything_goes):
    change = write_int8(finished, tmp_path / "model.onnx", rules)
    logits, _ = OnnxClassifier(tmp_path / "model.onnx")(val_images(finished))
    validation = finished.validation
    before, after = finished.probabilities(validation.x), expit(logits.astype(np.float64))
    answered = [i for i, one in enumerate(finished.calibrations) if not one.unanswered]
    assert change["images"] == len(validation.ids)
    assert 0 < change["probability"] < 0.2
    assert change["probability"] == pytest.approx(np.abs(after - before)[:, answered].max(), abs=1e-5)
    difference = (masked_auroc(after, validation.states) - masked_auroc(before, validation.states))[answered]
    assert list(change["auroc"]) == [finished.fields[i] for i in answered]
    np.testing.assert_allclose(list(change["auroc"].values()), difference, atol=1e-9)
    assert np.abs(difference).max() > 0
    states = [[list(rules.states(row).values()) for row in one] for one in (before, after)]
    assert change["states"] == sum(a != b for x, y in zip(*states, strict=True) for a, b in zip(x, y, strict=True))


def test_eight_bits_are_a_bundle_with_their_numbers_in_its_readme(finished, tmp_path, anything_goes):
    folder = build_bundle(finished, tmp_path / NAME, onnx="int8")
    text = (folder / "docs" / "README.md").read_text()
    assert "compute in 8 bits" in text
    assert f"On the {len(finished.validation.ids)} validation images" in text
    assert (folder / "models" / "model.onnx").stat().st_size < (folder / "models" / "model.pt").stat().st_size / 2
    assert json.loads((folder / "configs" / "metadata.json").read_text())["vivid"]["onnx"] == "int8"


def test_eight_bits_that_change_too_much_are_refused_before_anything_is_written(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "MOST", 0.0)
    with pytest.raises(VividError, match=r"8 bits change the AUROC of .* 0\.0 is allowed; take float32"):
        build_bundle(finished, tmp_path / NAME, onnx="int8")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
