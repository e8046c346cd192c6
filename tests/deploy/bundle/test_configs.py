"""Preprocessing as config is the preprocessing of training."""

import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from vivid_monai.data.preprocess import Preprocess
from vivid_monai.deploy.bundle.configs import to_normal, to_unit

CASES = [
    Preprocess(size=32),
    Preprocess(size=32, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bicubic"),
    Preprocess(size=32, resize="crop", resize_to=40),
    Preprocess(size=32, resize="stretch", resize_to=36, mean=0.1, std=0.7),
    Preprocess(size=32, resize="stretch", window=(900.0, 1500.0)),
]


def dicom(path, *, inverted: bool) -> str:
    """A 12-bit radiograph; inverted: the same image, stored as MONOCHROME1."""
    y, x = np.mgrid[:50, :70]
    stored = ((np.sin(x / 9) + np.cos(y / 7) + 2) * 900).astype(np.uint16)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Rows, ds.Columns, ds.SamplesPerPixel = 50, 70, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.WindowCenter, ds.WindowWidth = ("2495.5" if inverted else "1600"), "2400"
    ds.PixelData = (4095 - stored if inverted else stored).tobytes()
    ds.save_as(path, enforce_file_format=True)
    return str(path)


def by_config(preprocess: Preprocess, path: str) -> torch.Tensor:
    targets = [dict(one) for one in (*to_unit(preprocess), *to_normal(preprocess))]
    for one in targets:
        one["_target_"] = one["_target_"].replace("scripts.steps", "vivid_monai.data.steps")
    parser = ConfigParser({"all": {"_target_": "Compose", "transforms": targets}})
    return parser.get_parsed_content("all")({"image": path})["image"]


@pytest.mark.parametrize("preprocess", CASES)
def test_config_equals_the_preprocessing(tmp_path, preprocess):
    rng = np.random.default_rng(0)
    paths = [dicom(tmp_path / "a.dcm", inverted=False)]
    if preprocess.window is None:
        for name in ("b.png", "c.jpg"):
            Image.fromarray(rng.integers(0, 255, (61, 47), dtype=np.uint8)).save(tmp_path / name)
            paths.append(str(tmp_path / name))
    for path in paths:
        ours = preprocess.transform()({"image": path})["image"]
        theirs = by_config(preprocess, path)
        assert theirs.shape == ours.shape == (preprocess.channels, 32, 32)
        assert torch.equal(torch.as_tensor(theirs), torch.as_tensor(ours)), path


def test_both_photometric_interpretations_are_one_image(tmp_path):
    one, other = (by_config(CASES[0], dicom(tmp_path / f"{i}.dcm", inverted=bool(i))) for i in range(2))
    assert one.std() > 0.2
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=0, atol=0.02)
