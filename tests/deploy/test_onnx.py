"""Reading ONNX files: ours answer, all others are refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.deploy.small import make_classifier, make_images
from vivid_monai.deploy.onnx import OnnxClassifier
from vivid_monai.errors import VividError


def broken(path, kind: str) -> bytes | None:
    content = path.read_bytes()
    if kind == "truncated":
        return content[: len(content) // 2]
    if kind == "garbage":
        return bytes(range(256)) * 40
    if kind == "empty":
        return b""
    model = onnx.load(path)
    if kind == "no metadata":
        model.ClearField("metadata_props")
    elif kind == "metadata that are no JSON":
        model.metadata_props[0].value = "{"
    elif kind == "another format":
        next(one for one in model.metadata_props if one.key == "format").value = '"vivid-classifier 999"'
    elif kind == "another output":
        model.graph.output.pop()
    elif kind == "an operator of somebody":
        model.graph.node[0].domain = "somebody.else"
        model.opset_import.append(onnx.helper.make_opsetid("somebody.else", 1))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "no ONNX file that can be run"),
        ("garbage", "no ONNX file that can be run"),
        ("empty", "cannot be read"),
        ("no metadata", "was not written by export_onnx"),
        ("metadata that are no JSON", "was not written by export_onnx"),
        ("another format", "was not written by export_onnx"),
        ("another output", "was not written by export_onnx"),
        ("an operator of somebody", "no ONNX file that can be run"),
    ],
)
def test_files_that_are_not_ours_are_refused_in_one_line(kind, message, onnx_file, tmp_path, capfd):
    path = tmp_path / "c.onnx"
    path.write_bytes(broken(onnx_file, kind))
    with pytest.raises(VividError, match=message) as caught:
        OnnxClassifier(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_missing_files_and_folders_are_told(tmp_path):
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(VividError, match="cannot be read"):
            OnnxClassifier(path)


def test_no_other_file_is_read(onnx_file, tmp_path):
    path = tmp_path / "c.onnx"
    model = onnx.load(onnx_file)
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").is_file()
    with pytest.raises(VividError, match="in another file"):
        OnnxClassifier(path)


def test_images_that_do_not_fit_are_refused(onnx_file):
    classifier = OnnxClassifier(onnx_file)
    images = make_images(2)
    for wrong in (images[0], images.double(), images[:0], make_images(1, channels=3), images[..., :16], images.byte()):
        with pytest.raises(VividError, match="does not fit"):
            classifier(wrong)
    np.testing.assert_array_equal(classifier(images.numpy())[0], classifier(images)[0])


@pytest.mark.numeric
def test_answers_without_torch_and_monai(onnx_file):
    code = (
        "import sys, numpy\n"
        "from vivid_monai.deploy.onnx import OnnxClassifier\n"
        f"logits, _ = OnnxClassifier({str(onnx_file)!r}, threads=1)(numpy.ones((1, 1, 32, 32), 'f4'))\n"
        "assert not {'torch', 'monai', 'onnx', 'transformers'} & set(sys.modules)\n"
        "print(*logits[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = make_classifier()(make_images(1) * 0 + 1)[0].tolist()
    assert [float(one) for one in done.stdout.split()] == pytest.approx(expected, abs=1e-5)


def test_the_runtime_tells_nobody_of_what_it_runs(tmp_path):
    code = "import vivid_monai.deploy.onnx as one; one.onnxruntime.SessionOptions()"
    env = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    env |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    assert not list(tmp_path.rglob("*"))
