"""DICOM: the grey-scale pipeline step by step on made files, damage, and two real ones."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    RTDoseStorage,
    RTStructureSetStorage,
    generate_uid,
)

from vivid_monai.images import dicom
from vivid_monai.images.read import ImageError, read_image

RAMP = (np.arange(4 * 6, dtype=np.uint16).reshape(4, 6) * 178).astype(np.uint16)  # 0 … 4094, 12 bits


def save(path: Path, pixels: np.ndarray | None = RAMP, *, bits: int = 12, compress: str = "", **tags) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
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
    ds.save_as(path, enforce_file_format=True)
    return path


def lut(data: list[int], first: int, depth: int, entries: int | None = None) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data) if entries is None else entries, first, depth])
    item.add_new("LUTData", "US", data)
    return item


def test_without_window_the_range_of_the_values_is_scaled(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.dcm", RAMP[1:]))
    assert image.shape == (1, 3, 6)
    assert np.allclose(image[0], (RAMP[1:] - RAMP[1, 0]) / (RAMP.max() - RAMP[1, 0]), atol=1e-6)


def test_eight_bits_are_scaled_like_a_png(tmp_path: Path) -> None:
    pixels = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    assert np.array_equal(read_image(save(tmp_path / "a.dcm", pixels, bits=8))[0], (pixels / 255).astype(np.float32))
    rescaled = save(tmp_path / "b.dcm", pixels, bits=8, RescaleSlope=-2, RescaleIntercept=7)
    assert np.allclose(read_image(rescaled)[0], 1 - pixels / 255, atol=1e-6)


def test_monochrome1_is_the_exact_inverse(tmp_path: Path) -> None:
    plain = read_image(save(tmp_path / "a.dcm"))
    inverse = read_image(save(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverse, 1 - plain)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_the_first_window_is_applied_after_the_rescale(tmp_path: Path, function: str | None) -> None:
    tags = {"VOILUTFunction": function} if function else {}
    path = save(
        tmp_path / "a.dcm", RescaleSlope=0.5, RescaleIntercept=-1024, WindowCenter=[40, 9], WindowWidth=[400, 9], **tags
    )
    units = RAMP * 0.5 - 1024
    expected = {  # PS3.3 C.11.2.1.2 and C.11.2.1.3
        "LINEAR": np.clip((units - 39.5) / 399 + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((units - 40) / 400 + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (units - 40) / 400)),
    }[function or "LINEAR"]
    assert np.allclose(read_image(path)[0], expected, atol=1e-6)


def test_a_window_wider_than_the_values_does_not_stretch_them(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", RAMP // 4, WindowCenter=2047.5, WindowWidth=4095, VOILUTFunction="LINEAR_EXACT")
    assert np.allclose(read_image(path)[0], (RAMP // 4) / 4095, atol=1e-6)


def test_a_window_of_ones_own_replaces_the_files(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=9)
    assert np.allclose(read_image(path, window=(40, 400))[0], np.clip((RAMP - 1024.0 + 160) / 400, 0, 1), atol=1e-6)


def test_a_negative_slope_keeps_window_and_order(tmp_path: Path) -> None:
    tags = {"WindowCenter": -2000, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    path = save(tmp_path / "a.dcm", RescaleSlope=-1, RescaleIntercept=0, **tags)
    assert np.allclose(read_image(path)[0], np.clip((-RAMP.astype(float) + 2500) / 1000, 0, 1), atol=1e-6)


def test_a_signed_image_is_read_with_its_sign(tmp_path: Path) -> None:
    pixels = RAMP.astype(np.int16) - 2048
    tags = {"WindowCenter": 0, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    image = read_image(save(tmp_path / "a.dcm", pixels, **tags))
    assert np.allclose(image[0], np.clip(pixels / 1000 + 0.5, 0, 1), atol=1e-6)


def test_a_modality_table_comes_before_the_window(tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 2, 3]], np.uint16)
    tags = {"WindowCenter": 50, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
    table = {"ModalityLUTSequence": [lut([0, 100, 25, 50], 0, 16)]}
    image = read_image(save(tmp_path / "a.dcm", pixels, **tags, **table))
    assert np.allclose(image[0], [[0, 1, 0.25, 0.5]], atol=1e-6)


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_the_voi_table_wins_over_the_window_and_is_not_wrapped(tmp_path: Path, depth: int) -> None:
    top = 2**depth - 1
    table = lut([round(top * (1 - i / 999)) for i in range(1000)], 100, depth)  # falls, and has over 256 entries
    pixels = np.array([[0, 100, 599], [1099, 1100, 4000]], np.uint16)
    path = save(tmp_path / "a.dcm", pixels, VOILUTSequence=[table], WindowCenter=0, WindowWidth=9)
    expected = 1 - np.clip(pixels.astype(float) - 100, 0, 999) / 999
    assert np.allclose(read_image(path)[0], expected, atol=0.51 / top)


def test_padding_is_black_and_does_not_set_the_range(tmp_path: Path) -> None:
    pixels = RAMP.astype(np.int16)
    pixels[0, 0] = -2000
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        path = save(tmp_path / "a.dcm", pixels, bits=16, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
        image = read_image(path)[0]
        expected = (pixels - pixels[0, 1]) / (pixels.max() - pixels[0, 1])
        expected = 1 - expected if photometric == "MONOCHROME1" else expected
        expected[0, 0] = 0
        assert np.allclose(image, expected, atol=1e-6)
    with pytest.raises(ImageError, match="every pixel is padding"):
        read_image(save(tmp_path / "b.dcm", np.full_like(pixels, -2000), bits=16, PixelPaddingValue=-2000))


def test_a_range_of_padding_values_is_padding(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.dcm", PixelPaddingValue=0, PixelPaddingRangeLimit=178))[0]
    assert image[0, :3].tolist() == [0, 0, 0]
    assert np.allclose(image[1:], (RAMP[1:] - 356) / (RAMP.max() - 356), atol=1e-6)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_compressed_pixels_equal_the_plain_ones(tmp_path: Path, syntax: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 48)).astype(np.uint16)
    plain = read_image(save(tmp_path / "a.dcm", pixels))
    assert np.array_equal(read_image(save(tmp_path / "b.dcm", pixels, compress=syntax)), plain)


@pytest.mark.parametrize(
    ("pixels", "tags", "says"),
    [
        (None, {}, "no pixel data"),
        (None, {"SOPClassUID": RTStructureSetStorage}, "no image but RT Structure Set"),
        (RAMP, {"SOPClassUID": RTDoseStorage}, "no image but RT Dose"),
        (np.stack([RAMP] * 3), {"NumberOfFrames": 3}, "3 frames"),
        (RAMP, {"PhotometricInterpretation": "PALETTE COLOR"}, "not a grey image .*PALETTE COLOR"),
        (np.zeros((4, 6), np.uint16), {}, "every pixel is 0, and neither window"),
        (RAMP, {"WindowCenter": 40, "WindowWidth": 0}, "Window Width"),
        (RAMP, {"Rows": 40}, "unreadable DICOM"),
        (RAMP, {"Rows": 0}, "unreadable DICOM"),
    ],
)
def test_what_is_no_single_grey_image_is_refused(
    tmp_path: Path, pixels: np.ndarray | None, tags: dict, says: str
) -> None:
    path = save(tmp_path / "a.dcm", pixels, **tags)
    with pytest.raises(ImageError, match=says) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_colour_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", np.zeros((4, 18), np.uint8), bits=8)
    ds = dcmread(path)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration, ds.Columns = 3, "RGB", 0, 6
    ds.save_as(path)
    with pytest.raises(ImageError, match=r"not a grey image \(photometric interpretation RGB\)"):
        read_image(path)


def test_a_private_or_missing_class_is_judged_by_its_pixels(tmp_path: Path) -> None:
    expected = read_image(save(tmp_path / "a.dcm", SOPClassUID=CTImageStorage))
    for uid in ("", "1.3.12.2.1107.5.9.1"):
        assert np.array_equal(read_image(save(tmp_path / "b.dcm", SOPClassUID=uid)), expected)


@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize("syntax", ["", JPEG2000Lossless, RLELossless])
def test_truncated_files_are_refused(tmp_path: Path, syntax: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 48)).astype(np.uint16)
    data = save(tmp_path / "a.dcm", pixels, compress=syntax).read_bytes()
    for part in (0.3, 0.6, 0.95):
        (tmp_path / "cut.dcm").write_bytes(data[: int(len(data) * part)])
        with pytest.raises(ImageError, match=r"cut\.dcm: unreadable DICOM"):
            read_image(tmp_path / "cut.dcm")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "MAX_PIXELS", RAMP.size - 1)
    with pytest.raises(ImageError, match="6 x 4 pixels"):
        read_image(save(tmp_path / "a.dcm"))


@pytest.mark.real_data
def test_a_real_radiograph_and_its_monochrome1_twin(real_data: Path) -> None:
    plain = read_image(real_data / "cr_dicom/cr_pa_monochrome2.dcm")
    inverse = read_image(real_data / "cr_dicom/cr_pa_tagged_monochrome1.dcm")
    assert plain.shape == (1, 1024, 1024)
    assert np.array_equal(inverse, 1 - plain)
    assert plain[0, 300:500, 480:540].mean() > plain[0, 300:500, 250:350].mean()  # mediastinum over lung


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["cr_dicom/cr_pa_monochrome2.dcm", "ct/dicom_series"])
def test_a_truncated_stream_in_a_whole_file_is_refused(real_data: Path, tmp_path: Path, name: str) -> None:
    source = real_data / name
    ds = dcmread(min(source.iterdir()) if source.is_dir() else source)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    for part in (0.2, 0.99):
        ds.PixelData = encapsulate([frame[: int(len(frame) * part)]])
        ds.save_as(tmp_path / "cut.dcm")
        with pytest.raises(ImageError, match=r"cut\.dcm: unreadable DICOM"):
            read_image(tmp_path / "cut.dcm")


@pytest.mark.real_data
def test_a_real_ct_slice_in_its_first_window_and_in_ours(real_data: Path) -> None:
    path = min((real_data / "ct/dicom_series").iterdir())
    stored = dcmread(path).pixel_array.astype(float) - 1024  # slope 1, intercept −1024; windows 40/300 and 300/1500
    assert np.allclose(read_image(path)[0], np.clip((stored - 39.5) / 299 + 0.5, 0, 1), atol=1e-6)
    assert np.allclose(read_image(path, window=(-600, 1500))[0], np.clip((stored + 1350) / 1500, 0, 1), atol=1e-6)
