"""Small radiographs in DICOM."""

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def dicom(path, *, inverted: bool = False, seed: int = 0, pixels: np.ndarray | None = None, **tags) -> str:
    """A 12-bit radiograph, shown as 8-bit ``pixels`` (H, W) are, or a pattern of 50 x 70 pixels.

    ``inverted``: the same image, stored as MONOCHROME1.
    """
    if pixels is None:
        y, x = np.mgrid[:50, :70]
        pixels = ((np.sin(x / 9 + seed) + np.cos(y / 7) + 2) * 60).astype(np.uint8)
    stored = pixels.astype(np.uint16) * 16
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["made", str(seed)])
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = (generate_uid(entropy_srcs=[one, str(seed)]) for one in ("st", "se"))
    ds.Modality, ds.PatientName, ds.PatientID = "DX", "Doe^Jane", "4711"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *stored.shape, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    # 0 to 4,080 are shown, so that x / 4,080 = pixel / 255; of the inverted ones those that stood for them (linear:
    # PS3.3 C.11.2.1.2.1, from centre - 0.5 - (width - 1) / 2 over a range of width - 1).
    ds.WindowCenter, ds.WindowWidth = ("2055.5" if inverted else "2040.5"), "4081"
    ds.PixelData = (4095 - stored if inverted else stored).tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return str(path)
