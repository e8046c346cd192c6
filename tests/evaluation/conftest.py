"""Data sets that tests of the room change as they like."""

import shutil
from pathlib import Path

import pytest

from vivid_monai.data.manifest import Manifest
from vivid_monai.prepare.phantoms import prepare


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("phantoms"), n=60, size=32)


@pytest.fixture
def manifest(phantoms, tmp_path) -> Manifest:
    """A data set of one's own, to be changed."""
    shutil.copytree(phantoms.parent, tmp_path / "data")
    return Manifest.load(tmp_path / "data" / phantoms.name)
