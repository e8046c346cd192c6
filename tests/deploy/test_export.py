"""ONNX files: the same answers for any batch, nothing of the machine in them, whole or not there."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from monai.data.torchscript_utils import load_net_with_metadata

from tests.deploy.small import FIELDS, PREPROCESS, SIZE, make_classifier, make_images
from vivid_monai.deploy import export as module
from vivid_monai.deploy.export import export_onnx, export_torchscript
from vivid_monai.deploy.onnx import OnnxClassifier
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess

GIVEN = {"preprocess": PREPROCESS, "fields": FIELDS}


@pytest.fixture
def exported_before(onnx_file, monkeypatch):
    """Spares the exporter, which takes seconds: what it makes of ``make_classifier()`` is there already."""
    monkeypatch.setattr(module, "_onnx_model", lambda network: onnx.load(onnx_file))


@pytest.mark.numeric
@pytest.mark.parametrize(
    "options", [{"pool": "mean"}, {"pool": "spd"}, {"pool": "cls+mean", "in_channels": 3, "norm_eps": 1e-2}]
)
def test_equals_pytorch_for_any_batch(options, tmp_path):
    ours = make_classifier(**options)
    channels = options.get("in_channels", 1)
    preprocess = Preprocess(size=SIZE, channels=channels)
    path = export_onnx(ours, tmp_path / "new" / "c.onnx", preprocess=preprocess, fields=FIELDS)
    runtime = OnnxClassifier(path, threads=1)
    for batch in (1, 3, 8):
        images = make_images(batch, channels=channels)
        logits, features = runtime(images)
        with torch.inference_mode():
            np.testing.assert_allclose(logits, ours(images), rtol=0, atol=1e-5)
            np.testing.assert_allclose(features, ours.features(images), rtol=0, atol=1e-5)
        assert logits.dtype == features.dtype == np.float32
    assert runtime.preprocess == preprocess
    assert runtime.fields == tuple(FIELDS)
    assert [file.name for file in path.parent.iterdir()] == ["c.onnx"]


def test_training_mode_and_precision_of_the_original_are_neither_used_nor_changed(tmp_path):
    ours = make_classifier(drop_path=0.5).train()
    path = export_onnx(ours.double(), tmp_path / "c.onnx", **GIVEN)
    assert ours.training
    assert ours.head.weight.dtype == torch.float64
    images = make_images(2)
    np.testing.assert_allclose(OnnxClassifier(path)(images)[0], ours.eval().float()(images).detach(), rtol=0, atol=1e-5)


def test_any_runtime_can_read_what_it_is_and_nothing_of_the_machine(onnx_file):
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    stored = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert stored["fields"] == FIELDS
    assert stored["preprocess"] == PREPROCESS.to_dict()
    assert stored["versions"].keys() >= {"vivid-monai", "torch"}
    shapes = {
        one.name: [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim]
        for one in (*model.graph.input, *model.graph.output)
    }
    batch = shapes["image"][0]
    assert isinstance(batch, str)
    assert shapes == {"image": [batch, 1, 32, 32], "pred": [batch, 5], "features": [batch, 128]}
    content = onnx_file.read_bytes()
    for trace in (b".py", b"/home", module.__file__.rsplit("/", 4)[0].encode(), b"stack_trace"):
        assert trace not in content
    assert Counter(node.op_type for node in model.graph.node)["Gelu"] == 6, "not fused: a tenth slower"
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.usefixtures("exported_before")
def test_a_file_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    def spoil(model, metadata):
        bias = next(one for one in model.graph.initializer if one.name == "classifier.head.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(2e-4), bias.name))
        write_metadata(model, metadata)

    write_metadata = module.write_metadata
    monkeypatch.setattr(module, "write_metadata", spoil)
    with pytest.raises(VividError, match=r"c\.onnx: a batch of 1 differs from PyTorch's by 0\.0002"):
        export_onnx(make_classifier(), tmp_path / "c.onnx", **GIVEN)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("exported_before")
def test_weights_that_are_not_finite_are_told(tmp_path):
    ours = make_classifier()
    with torch.no_grad():
        ours.head.bias[1] = float("nan")
    with pytest.raises(VividError, match="by nan"):
        export_onnx(ours, tmp_path / "c.onnx", **GIVEN)


@pytest.mark.usefixtures("exported_before")
def test_interrupted_it_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "c.onnx"
    path.write_bytes(b"before")

    def interrupt(*_, **__):
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_same", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(make_classifier(), path, **GIVEN)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fields": FIELDS[:4]}, "4 fields .* classifier of 5"),
        ({"fields": [*FIELDS[:4], FIELDS[0]]}, r"5 fields \(4 different"),
        ({"preprocess": Preprocess(size=48)}, "do not belong"),
        ({"preprocess": Preprocess(size=SIZE, channels=3)}, "do not belong"),
    ],
)
def test_what_does_not_belong_together_is_refused(wrong, message, tmp_path):
    with pytest.raises(VividError, match=message):
        export_onnx(make_classifier(), tmp_path / "c.onnx", **(GIVEN | wrong))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("exported_before")
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VividError, match="cannot be written"):
        export_onnx(make_classifier(), tmp_path / "file" / "c.onnx", **GIVEN)


@pytest.mark.numeric
@pytest.mark.parametrize("pool", ["cls", "cls+mean", "spd"])
def test_equals_pytorch_for_any_batch_and_keeps_what_belongs_to_it(pool, tmp_path):
    ours = make_classifier(pool=pool, drop_path=0.5).train()
    path = export_torchscript(ours, tmp_path / "new" / "c.ts", **GIVEN)
    assert ours.training
    ours.eval()
    loaded, metadata, _ = load_net_with_metadata(str(path))
    plain = torch.jit.load(path)
    for batch in (1, 3, 8):
        images = make_images(batch)
        for network in (loaded, plain):
            torch.testing.assert_close(network(images), ours(images), rtol=0, atol=1e-6)
    assert metadata["fields"] == FIELDS
    assert Preprocess.from_dict(metadata["preprocess"]) == PREPROCESS
    assert [file.name for file in path.parent.iterdir()] == ["c.ts"]


def test_torchscript_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    other = make_classifier(seed=5)
    monkeypatch.setattr(module, "load_net_with_metadata", lambda path: (other, {}, {}))
    with pytest.raises(VividError, match=r"c\.ts: a batch of 1 differs"):
        export_torchscript(make_classifier(), tmp_path / "c.ts", **GIVEN)
    assert not list(tmp_path.iterdir())


def test_interrupted_torchscript_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_same", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_torchscript(make_classifier(), tmp_path / "c.ts", **GIVEN)
    assert not list(tmp_path.iterdir())


def test_bad_targets_and_what_does_not_belong_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VividError, match="cannot be written"):
        export_torchscript(make_classifier(), tmp_path / "file" / "c.ts", **GIVEN)
    with pytest.raises(VividError, match="do not belong"):
        export_torchscript(make_classifier(), tmp_path / "c.ts", preprocess=Preprocess(size=64), fields=FIELDS)
