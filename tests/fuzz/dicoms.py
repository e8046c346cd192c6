"""DICOM files of drawn attributes, and what DCMTK's converter shows of them."""

import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from tests.fuzz.damage import one_line
from tests.images.made_dicom import save
from vivid_monai.images.read import ImageError, read_image

AT_HAND = shutil.which("dcmj2pnm") is not None
"""Whether DCMTK is installed."""
ENCODERS = {"dcmcjpeg": [[], ["+el"]], "dcmcjpls": [["+el"]], "dcmcrle": [[]]}
"""Lossless ones of DCMTK, and options of each."""
ODD: dict[str, list] = {
    "BitsAllocated": [0, 1, 8, 12, 16, 32],
    "BitsStored": [0, 7, 8, 16, 17],
    "HighBit": [0, 7, 15, 16],
    "PixelRepresentation": [0, 1, 2],
    "Rows": [0, 1, 11, 13, 65535],
    "Columns": [0, 1, 17],
    "SamplesPerPixel": [0, 2, 3],
    "NumberOfFrames": [None, 0, 1, 2],
    "PhotometricInterpretation": ["", "RGB", "PALETTE COLOR", "YBR_FULL", "monochrome2"],
    "WindowWidth": [0, -1, 0.5, 1, 1e30],
    "WindowCenter": [1e30, -1e30, ["", ""]],
    "RescaleSlope": [0, -0.5],
    "RescaleIntercept": [3],
    "VOILUTFunction": ["LINEAR_EXACT", "linear", "ANOTHER"],
    "PresentationLUTShape": ["LIN OD", "identity", ""],
    "PixelData": [b"", b"\0\0", b"\0" * 1000],
    "ModalityLUTSequence": [[], [Dataset()]],
    "VOILUTSequence": [[], [Dataset()]],
}
"""Attribute → values that writers should not write, or seldom do."""
SIGN = {"PixelRepresentation", "RescaleSlope", "RescaleIntercept"}
"""Odd attributes that say whether the values of a table have a sign."""
SAME = {"plain": 0.006, "odd": 0.01}
"""Of the full range: DCMTK rounds to 8 bits in between, and values of tables to whole numbers."""


def files() -> st.SearchStrategy[random.Random]:
    """Choices, of which `draw` makes a file."""
    return st.randoms(use_true_random=False)


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


def compress(path: Path, choose: random.Random) -> str:
    """Let an encoder of DCMTK's compress a file in place, where it can; its name, or "" ."""
    program = choose.choice(sorted(ENCODERS))
    made = path.with_suffix(".made")
    words = [program, *choose.choice(ENCODERS[program]), str(path), str(made)]
    if subprocess.run(words, capture_output=True).returncode or not made.is_file():
        return ""
    made.replace(path)
    return program


def spoil(path: Path, choose: random.Random) -> list[str]:
    """Give a file one or two odd attributes, or take some away; says which."""
    ds = dcmread(path)
    names = choose.sample(sorted(ODD), choose.choice([1, 1, 2]))
    for name in names:
        if name in ds and choose.random() < 0.25:
            del ds[name]
        elif name == "PixelData" and ds.file_meta.TransferSyntaxUID.is_compressed:
            continue
        else:
            setattr(ds, name, choose.choice(ODD[name]))
    ds.save_as(path)
    return names


def shown(path: Path, *options: str) -> np.ndarray | None:
    """What DCMTK shows, float64 (H, W) in [0, 1]; None where it shows nothing, or cannot use these options."""
    picture, ds = path.with_suffix(".png"), dcmread(path)
    if ds.get("VOILUTFunction") == "LINEAR_EXACT":  # unknown to DCMTK: the same ramp as LINEAR has half a step more
        for name, more in (("WindowCenter", 0.5), ("WindowWidth", 1)):
            if isinstance(ds.get(name), float):
                setattr(ds, name, ds[name].value + more)
        del ds.VOILUTFunction
        path = path.with_suffix(".linear")
        ds.save_as(path)
    program = "dcml2pnm" if ds.file_meta.TransferSyntaxUID in JPEGLSTransferSyntaxes else "dcmj2pnm"
    done = subprocess.run([program, "-O", *options, "+on2", str(path), str(picture)], capture_output=True)
    if done.returncode or b"cannot select" in done.stderr or not picture.is_file():
        return None
    return np.asarray(Image.open(picture), np.float64) / 65535


def ways(path: Path, first: list[str]) -> list[list[str]]:
    """Options of DCMTK in the order in which a viewer tries them; the bits that the file says decide on the last."""
    bits = dcmread(path).get("BitsStored") or 0
    said = [first] if first not in ([], ["+Wm"]) else []
    return [*said, ["+Wl", "1"], ["+Wi", "1"], ["+Wi", "2"], ["+Wm", "+Wfl"] if bits > 8 else []]


def check(choose: random.Random) -> str:
    """Read a drawn file and have DCMTK show it: the same picture, or a refusal in one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dcm"
        options = draw(choose, path)
        packed = compress(path, choose) if choose.random() < 0.3 else ""
        odd = spoil(path, choose) if choose.random() < 0.5 else []
        try:
            ours = read_image(path)[0]
        except ImageError as error:
            one_line(error, beside=folder)
            if not odd:
                raise
            return "odd: refused"
        tried = ways(path, options) if odd else [options]
        theirs, way = next(((one, way) for way in tried if (one := shown(path, *way)) is not None), (None, []))
        if theirs is None:
            assert odd, "DCMTK shows nothing of a whole file"
            return "odd: read, and DCMTK shows nothing"
        tags = str(dcmread(path))
        if SIGN.intersection(odd) and "LUT Descriptor" in tags:
            return "odd: whether a table begins below 0, nobody can tell"
        if odd and not way and "Modality LUT Sequence" in tags:
            return "odd: of a table without a window, DCMTK shows the whole depth"
        assert ours.shape == theirs.shape, (odd, ours.shape, theirs.shape)
        difference = np.abs(ours - theirs).max()
        assert difference < SAME["odd" if odd else "plain"], f"{odd}: {difference:.3f} from DCMTK's {way}\n{tags}"
        return f"{'odd' if odd else packed or 'plain'}: as DCMTK shows it"
