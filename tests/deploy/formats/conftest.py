"""The ONNX file of a small classifier."""

from pathlib import Path

import pytest

from tests.deploy.formats.small import FIELDS, PREPROCESS, make_classifier
from vivid_monai.deploy.formats.onnx import export_onnx


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory) -> Path:
    """The file of ``make_classifier()``."""
    path = tmp_path_factory.mktemp("onnx") / "classifier.onnx"
    return export_onnx(make_classifier(), path, preprocess=PREPROCESS, fields=FIELDS)
