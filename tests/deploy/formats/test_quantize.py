"""8 bits: nearly the same answers, whatever else is in the batch."""

import sys

import numpy as np
import pytest
import torch

from tests.deploy.formats.small import FIELDS, make_classifier, make_images
from vivid_monai.deploy.formats import quantize as module
from vivid_monai.deploy.formats.onnx_classifier import OnnxClassifier
from vivid_monai.deploy.formats.quantize import auroc_differences, quantize_onnx
from vivid_monai.errors import VividError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def small_file(onnx_file, tmp_path_factory):
    return quantize_onnx(onnx_file, tmp_path_factory.mktemp("int8") / "new" / "c.onnx", images=make_images(16, seed=9))


def weights_in_bytes(path) -> dict[str, tuple[int, ...]]:
    graph = onnx.load(path).graph
    return {one.name: tuple(one.dims) for one in graph.initializer if one.data_type == 3 and len(one.dims) == 2}


def test_answers_are_nearly_the_same(small_file, onnx_file):
    images = make_images(64)
    whole, small = OnnxClassifier(onnx_file), OnnxClassifier(small_file)
    for got, wanted in zip(small(images), whole(images), strict=True):
        error = np.sqrt(((got - wanted) ** 2).mean())
        assert 0 < error < 0.05 * wanted.std()
    assert small_file.stat().st_size < 0.35 * onnx_file.stat().st_size
    assert [one.name for one in small_file.parent.iterdir()] == ["c.onnx"]


def test_an_answer_does_not_hang_on_the_batch(small_file):
    small, images = OnnxClassifier(small_file), make_images(5)
    images[4] *= 20  # with a range taken from the batch, all others would be coarse
    together = small(images)[0]
    for i in range(5):
        np.testing.assert_allclose(small(images[i : i + 1])[0][0], together[i], rtol=0, atol=1e-5)


def test_linear_layers_are_in_bytes_per_channel_and_all_else_is_not(small_file):
    graph = onnx.load(small_file).graph
    shapes = sorted(weights_in_bytes(small_file).values())
    assert shapes == sorted(6 * [(128, 384), (128, 128), (128, 512), (512, 128)])
    scales = [one for one in graph.initializer if one.name.endswith("_scale") and len(one.dims) == 1]
    assert sorted(one.dims[0] for one in scales) == sorted(6 * [384, 128, 512, 128])
    heads = [one for one in graph.initializer if one.name == "classifier.head.weight"]
    assert [one.data_type for one in heads] == [onnx.TensorProto.FLOAT]
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 24


def test_what_belongs_to_it_survives_and_nothing_else_gets_in(small_file, onnx_file):
    whole, small = OnnxClassifier(onnx_file).metadata, OnnxClassifier(small_file).metadata
    assert small == whole | {"calibration_images": 16, "kept": []}
    assert OnnxClassifier(small_file).fields == tuple(FIELDS)
    onnx.checker.check_model(onnx.load(small_file))


def test_layers_can_be_left_as_they_are(onnx_file, small_file, tmp_path):
    kept = quantize_onnx(onnx_file, tmp_path / "k.onnx", images=make_images(4), keep=["mlp.linear2", "blocks.0."])
    assert sorted(weights_in_bytes(kept).values()) == sorted(5 * [(128, 384), (128, 128), (128, 512)])
    assert OnnxClassifier(kept).metadata["kept"] == ["mlp.linear2", "blocks.0."]
    with pytest.raises(VividError, match=r"keep='linear3'.*blocks\.5\.mlp\.linear2"):
        quantize_onnx(onnx_file, tmp_path / "n.onnx", images=make_images(4), keep=["linear3"])


def test_differences_of_auroc_are_per_field(onnx_file, small_file, tmp_path, monkeypatch):
    images = make_images(40)
    logits = OnnxClassifier(onnx_file)(images)[0]
    states = (logits > np.median(logits, axis=0)).astype(int)  # the first file's AUROC is 1
    states[:, 4] = -1
    assert auroc_differences(onnx_file, onnx_file, images, states)[:4].tolist() == [0, 0, 0, 0]
    model = onnx.load(onnx_file)
    weight = next(one for one in model.graph.initializer if one.name == "classifier.head.weight")
    turned = onnx.numpy_helper.to_array(weight).copy()
    turned[1] *= -1
    weight.CopyFrom(onnx.numpy_helper.from_array(turned, weight.name))
    onnx.save(model, tmp_path / "turned.onnx")
    differences = auroc_differences(onnx_file, tmp_path / "turned.onnx", iter(images), states)
    assert differences[:4].tolist() == [0, -1, 0, 0]
    assert np.isnan(differences[4])
    small = auroc_differences(onnx_file, small_file, images, states)
    assert np.abs(small[:4]).max() < 0.02
    with pytest.raises(VividError, match="one shape"):
        auroc_differences(onnx_file, small_file, images[:3], states)


def test_files_of_other_fields_are_not_compared(onnx_file, tmp_path):
    model = onnx.load(onnx_file)
    fields = next(one for one in model.metadata_props if one.key == "fields")
    fields.value = fields.value.replace("Edema", "Other")
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(VividError, match="different fields"):
        auroc_differences(onnx_file, tmp_path / "other.onnx", [], np.zeros((0, 5)))


def test_bad_images_and_files_are_told(onnx_file, small_file, tmp_path):
    out = tmp_path / "c.onnx"
    with pytest.raises(VividError, match="no image was given"):
        quantize_onnx(onnx_file, out, images=[])
    with pytest.raises(VividError, match="does not fit"):
        quantize_onnx(onnx_file, out, images=[torch.zeros(1, 64, 64)])
    with pytest.raises(VividError, match="8 bits already"):
        quantize_onnx(small_file, out, images=make_images(2))
    (tmp_path / "file").write_text("")
    with pytest.raises(VividError, match="cannot be written"):
        quantize_onnx(onnx_file, tmp_path / "file" / "c.onnx", images=make_images(2))
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_interrupted_it_leaves_nothing(onnx_file, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_metadata", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize_onnx(onnx_file, tmp_path / "c.onnx", images=make_images(2))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_told(onnx_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(VividError, match=r'pip install "vivid-monai\[onnx\]"'):
        quantize_onnx(onnx_file, tmp_path / "c.onnx", images=make_images(2))


def test_pytorch_agrees(small_file):
    """Quantised from the ONNX file, held against the classifier that it comes from."""
    images = make_images(32)
    with torch.inference_mode():
        logits = make_classifier()(images).numpy()
    assert np.corrcoef(OnnxClassifier(small_file)(images)[0].ravel(), logits.ravel())[0, 1] > 0.998
