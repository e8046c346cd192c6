"""Damaged files of every kind: no crash, no answer for what cannot be read, one line for each."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.deploy.made_dicom import dicom
from tests.deploy.mutate import mutations
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.predict import predict
from vivid_monai.errors import VividError

N = 40  # of each kind; scripts/fuzz.py makes thousands


@pytest.fixture(scope="module")
def model(bundle_folder):
    """The bundle's model."""
    return BundleModel(bundle_folder)


def originals(folder: Path) -> dict[str, bytes]:
    """A DICOM, a PNG and a JPEG."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50), dtype=np.uint8))
    files = {"dcm": Path(dicom(folder / "a.dcm", PatientID="XQ4711")).read_bytes()}
    for name, form in (("png", "PNG"), ("jpg", "JPEG")):
        buffer = io.BytesIO()
        image.save(buffer, form)
        files[name] = buffer.getvalue()
    return files


def test_every_damaged_image_is_answered_or_listed_in_one_line(model, tmp_path, capfd):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name, content in originals(tmp_path).items():
        for i, damaged in enumerate(mutations(content, N, seed=1)):
            (folder / f"{i:03d}.{name}").write_bytes(damaged)
    done = predict(model, find_inputs([folder]), tmp_path / "out", batch_size=16)
    counts = done.counts()
    assert sum(counts.values()) == len(done.entries) == 3 * N
    assert counts["unreadable"] > N
    for entry in done.entries:
        if entry.status == "answered":
            assert len(entry.probabilities) == len(model.rules.fields)
            assert all(0 <= value <= 1 for value in entry.probabilities)
        else:
            assert entry.reason
            assert "\n" not in entry.reason
            assert not entry.probabilities
    with (tmp_path / "out" / "unreadable.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == counts["unreadable"]
    cut = [one for one in done.entries if one.image.path.endswith((".png", ".jpg")) and one.status == "answered"]
    assert all((int(Path(one.image.path).stem) % 4) != 0 for one in cut)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    told = "".join(capfd.readouterr())
    for secret in ("Doe", "Jane", "XQ4711"):
        assert secret not in told
        assert secret.encode() not in written


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("configs/metadata.json", None),
        ("models/model.pt", "torch"),
        ("models/model.onnx", "onnx"),
        ("models/assessment.safetensors", None),
    ],
)
def test_a_damaged_bundle_is_refused_or_is_the_same(bundle_folder, finished, tmp_path, name, runtime):
    folder = shutil.copytree(bundle_folder, tmp_path / bundle_folder.name)
    place = int(np.flatnonzero(finished.ood.accepts(finished.thumbnails["test"]))[0])
    image = find_inputs([Path(finished.manifest.select("test").items()[place]["image"])])
    expected = predict(BundleModel(bundle_folder, runtime=runtime), image, tmp_path / "out").entries[0]
    assert expected.status == "answered"
    told = []
    for i, damaged in enumerate(mutations((bundle_folder / name).read_bytes(), N, seed=2)):
        (folder / name).write_bytes(damaged)
        try:
            entry = predict(BundleModel(folder, runtime=runtime), image, tmp_path / f"out{i}").entries[0]
        except VividError as error:
            told.append(str(error))
        else:
            assert entry == expected
    assert len(told) > N / 3
    assert not any("\n" in one for one in told)


@pytest.mark.real_data
def test_a_decoder_that_tells_it_in_several_lines_is_quoted_in_one(model, real_data, tmp_path):
    content = bytearray((real_data / "cr_dicom" / "cr_pa_monochrome2.dcm").read_bytes())
    content[content.index(b"\xff\xd8\xff") + 122] ^= 0x55  # in a Huffman table
    (tmp_path / "a.dcm").write_bytes(content)
    (entry,) = predict(model, find_inputs([tmp_path / "a.dcm"]), tmp_path / "out").entries
    assert entry.status == "unreadable"
    assert "pylibjpeg" in entry.reason
    assert "\n" not in entry.reason
