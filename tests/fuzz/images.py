"""Damaged images in a folder with a whole one: each is answered, or listed with the reason, and the run goes on."""

import random
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, RLELossless

from tests.deploy.made_dicom import dicom
from tests.fuzz.damage import damaged, one_line
from tests.fuzz.dicoms import spoil
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.predict import Entry, predict
from vivid_monai.phantom.phantom import generate

BUNDLE = Path(__file__).parents[2] / "bundle" / "chest_phantom_vit_classification"
SECRETS = ("Doe", "Jane", "XQ4711")
_CLOSED = 16
"""Bytes at the end of a file that viewers do without."""


@cache
def model() -> BundleModel:
    return BundleModel(BUNDLE)


@cache
def originals() -> dict[str, bytes]:
    """A phantom in every kind of file that is read: name → content."""
    pixels = generate(99, 0, 112).image
    image, files = Image.fromarray(pixels), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix in ("png", "jpg", "bmp", "tiff"):
            image.save(folder / f"whole.{suffix}")
        Image.fromarray(pixels.astype(np.uint16) * 257).save(folder / "whole-16.png")
        for kind, syntax in {"": "", "-rle": RLELossless, "-j2k": JPEG2000Lossless}.items():
            path = dicom(folder / f"whole{kind}.dcm", pixels=pixels, PatientID="XQ4711")
            if syntax:
                ds = dcmread(path)
                ds.compress(syntax)
                ds.save_as(path)
        for path in folder.iterdir():
            files[path.name] = path.read_bytes()
    return files


@cache
def whole(name: str) -> list[float]:
    """The probabilities of a file that is not damaged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(originals()[name])
        (entry,) = predict(model(), find_inputs([path]), Path(folder) / "out").entries
    assert entry.status == "answered", entry
    return entry.probabilities


def check(choose: random.Random) -> str:
    """Predict from a folder with a whole file and a few damaged ones."""
    names = sorted(originals())
    good, bad = choose.choice(names), [choose.choice(names) for _ in range(choose.choice([1, 3, 6]))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        (folder / f"a {good}").write_bytes(originals()[good])
        cut = set()
        for i, source in enumerate(bad):
            path = folder / f"b{i} {source}"
            path.write_bytes(originals()[source])
            if source.endswith(".dcm") and choose.random() < 0.4:
                spoil(path, choose)
                continue
            content = damaged(path.read_bytes(), choose)
            path.write_bytes(content)
            if source.endswith(".jpg") and choose.random() < 0.3:  # cut, and closed again
                path.write_bytes(
                    originals()[source][: choose.randrange(700, len(originals()[source]) - 64)] + b"\xff\xd9"
                )
                cut.add(path.name)
            elif len(content) < len(originals()[source]) - _CLOSED and originals()[source].startswith(content):
                cut.add(path.name)
        done = predict(model(), find_inputs([folder]), Path(name) / "out", batch_size=choose.choice([1, 4]))
        assert len(done.entries) == 1 + len(bad)
        for entry in done.entries:
            path = Path(entry.image.path)
            if path.name.startswith("a "):
                # In a batch, sums go another way.
                np.testing.assert_allclose(entry.probabilities, whole(good), atol=2e-5)
            else:
                sane(entry, name)
                assert not (path.name in cut and entry.status == "answered"), f"{path.name} was cut and answered"
        told = b"".join(file.read_bytes() for file in (Path(name) / "out").iterdir()).decode()
        assert not any(secret in told for secret in SECRETS)
        return ", ".join(sorted({entry.status for entry in done.entries[1:]}))


def sane(entry: Entry, folder: str) -> None:
    """An answer of probabilities, or none and the reason in one line."""
    if entry.status == "answered":
        assert len(entry.probabilities) == len(model().fields)
        assert all(0 <= value <= 1 for value in entry.probabilities), entry.probabilities
    else:
        assert entry.status in ("not assessed", "unreadable")
        assert not entry.probabilities
        one_line(entry.reason, beside=folder, secrets=SECRETS)
