"""What DCMTK's converter shows of the same made files."""

import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from vivid_monai.images.read import read_image

from .made_dicom import save

pytestmark = [
    pytest.mark.dcmtk,
    pytest.mark.skipif(shutil.which("dcmj2pnm") is None, reason="DCMTK's dcmj2pnm is not installed"),
]


def dcmtk(path: Path, *options: str) -> np.ndarray:
    picture = path.with_suffix(".png")
    subprocess.run(["dcmj2pnm", "-O", *options, "+on2", str(path), str(picture)], check=True, capture_output=True)
    return np.asarray(Image.open(picture), np.float64) / 65535


def table(entries: np.ndarray, first: int, depth: int) -> Dataset:
    item = Dataset()
    words = np.array([len(entries), first, depth]).astype(np.int16 if first < 0 else np.uint16)
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", words.tolist())
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def draw(choose: random.Random, path: Path) -> list[str]:
    """Write a file of drawn attributes; the options that make DCMTK show what a viewer shows first."""
    rng = np.random.default_rng(choose.randrange(2**32))
    signed, allocated = choose.random() < 0.4, choose.choice([8, 16, 16, 16])
    bits = 8 if allocated == 8 else choose.choice([10, 12, 14, 16])
    high = choose.choice([bits, bits, allocated]) - 1
    low, top = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    pixels = rng.integers(low, top + 1, (12, 16)) << (high + 1 - bits)
    tags: dict = {"HighBit": high, "PhotometricInterpretation": choose.choice(["MONOCHROME1", "MONOCHROME2"])}

    modality = choose.choice(["absent", "empty", "rescale", "rescale", "table"])
    if modality == "empty":
        tags |= {"RescaleSlope": None, "RescaleIntercept": None}
    elif modality == "rescale":
        slope, intercept = choose.choice([1, 2, 3, -1]), choose.choice([0, -1024, -2048, 5])
        tags |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
        low, top = sorted((low * slope + intercept, top * slope + intercept))
    elif modality == "table":
        depth = choose.choice([8, 12, 16])
        values = np.sort(rng.integers(0, 2**depth, top - low + 1))
        tags["ModalityLUTSequence"] = [table(values, low, depth)]
        low, top = 0, 2**depth - 1

    window = {
        "WindowCenter": round(choose.uniform(low, top), 1),
        "WindowWidth": round(max(2, choose.uniform(0.1, 1.5) * (top - low)), 1),
        "VOILUTFunction": choose.choice(["", "LINEAR", "SIGMOID"]),
    }
    voi = choose.choice(["absent", "window", "second window", "empty table", "table", "table"])
    if voi == "absent" and modality == "table" and bits == 8:
        voi = "window"  # DCMTK would scale the table's whole depth
    options = ["+Wi", "1"]
    if voi == "absent":
        options = ["+Wm"] if bits > 8 else []
        tags |= {"WindowCenter": None, "WindowWidth": None}
    elif voi == "table":
        depth = choose.choice([8, 10, 12, 16])
        said = choose.choice([depth, depth, 16])
        entries = np.linspace(0, 2**depth - 1, min(top - low + 1, choose.choice([256, 1000, 4096])))
        first = max(-(2**15), min(2**15 - 1, low + choose.choice([0, (top - low) // 4])))
        tags |= {"VOILUTSequence": [table(entries.astype(int), first, said)], "WindowCenter": 0, "WindowWidth": 9}
        options = ["+Wl", "1", *(["+Mv"] if said != depth else [])]  # ignore what it says of its depth
    elif voi == "second window":
        options = ["+Wi", "2"]
        tags |= window | {name: ["", window[name]] for name in ("WindowCenter", "WindowWidth")}
    else:
        tags |= window | ({"VOILUTSequence": [table(np.array([]), 0, 16)]} if voi == "empty table" else {})
    if shape := choose.choice([None, "IDENTITY", "INVERSE"]):
        tags["PresentationLUTShape"] = shape

    syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless]
    syntax = choose.choice(syntaxes)
    how = {"compress": syntax} if syntax == RLELossless else {"syntax": syntax}
    save(path, pixels.astype(f"{'i' if signed else 'u'}{allocated // 8}"), bits=bits, **how, **tags)
    return options


@pytest.mark.parametrize("seed", range(40))
def test_a_drawn_file_looks_as_dcmtk_shows_it(tmp_path: Path, seed: int) -> None:
    options = draw(random.Random(seed), tmp_path / "a.dcm")
    difference = np.abs(read_image(tmp_path / "a.dcm")[0] - dcmtk(tmp_path / "a.dcm", *options)).max()
    assert difference < 0.006, dcmread(tmp_path / "a.dcm")
