"""Small DICOM files, attribute by attribute."""

from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

RAMP = (np.arange(4 * 6, dtype=np.uint16).reshape(4, 6) * 178).astype(np.uint16)  # 0 … 4094, 12 bits


def save(
    path: Path,
    pixels: np.ndarray | None = RAMP,
    *,
    bits: int = 12,
    compress: str = "",
    syntax: str = ExplicitVRLittleEndian,
    **tags,
) -> Path:
    """A grey image, or what else its `tags` make of it; `syntax`: of uncompressed pixels."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, ds.SOPInstanceUID
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    if pixels is not None:
        ds.Rows, ds.Columns = pixels.shape[-2:]
        ds.BitsAllocated = pixels.itemsize * 8
        ds.BitsStored, ds.HighBit = bits, bits - 1
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
        ds.PixelData = pixels.tobytes()
        ds["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    if compress:
        ds.compress(compress)
    for key, value in tags.items():
        setattr(ds, key, value)
    if compress:
        ds.save_as(path, enforce_file_format=True)
    else:
        ds.save_as(path, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return path


def lut(data: list[int], first: int, depth: int, entries: int | None = None) -> Dataset:
    """An item of a LUT sequence; `entries`: how many the descriptor says."""
    item = Dataset()
    vr = "US" if first >= 0 else "SS"
    item.add_new("LUTDescriptor", vr, [len(data) if entries is None else entries, first, depth])
    item.add_new("LUTData", "US", data)
    return item
