"""DICOM: the grey-scale pipeline step by step on made files, damage, and two real ones."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    RTDoseStorage,
    RTStructureSetStorage,
)

from vivid_monai.images import dicom, dicom_file
from vivid_monai.images.read import ImageError, read_image

from .made_dicom import RAMP, lut, save


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


WINDOW = {"WindowCenter": 2047.5, "WindowWidth": 4095, "VOILUTFunction": "LINEAR_EXACT"}
GREY = RAMP / 4095


def close(image: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(image, expected, atol=1e-6)


@pytest.mark.parametrize("said", [0, 8, 16])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_table_of_another_depth_than_it_says_is_scaled_by_its_largest_entry(
    tmp_path: Path, sequence: str, said: int
) -> None:
    table = lut(list(range(4096)), 0, said)
    path = save(tmp_path / "a.dcm", **{sequence: [table]}, **(WINDOW if sequence[0] == "M" else {}))
    assert close(read_image(path)[0], GREY)


def test_a_table_that_ends_below_white_stays_so(tmp_path: Path) -> None:
    table = lut([round(i * 2500 / 4095) for i in range(4096)], 0, 12)
    assert np.allclose(read_image(save(tmp_path / "a.dcm", VOILUTSequence=[table]))[0], GREY * 2500 / 4095, atol=2e-4)


def test_a_table_of_two_entries_to_a_word(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 8])
    table.add_new("LUTData", "OW", bytes(range(255, -1, -1)))
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert close(read_image(save(tmp_path / "a.dcm", pixels, bits=8, VOILUTSequence=[table]))[0], 1 - pixels / 255)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("pixels", "rescale"), [(RAMP, (1, -2048)), (RAMP.astype(np.int16) - 2048, None)])
def test_a_table_begins_below_zero_where_its_input_can(
    tmp_path: Path, syntax: str, pixels: np.ndarray, rescale: tuple | None
) -> None:
    tags = {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1]} if rescale else {}
    table = lut(list(range(4096)), -2048, 12)
    assert close(read_image(save(tmp_path / "a.dcm", pixels, syntax=syntax, VOILUTSequence=[table], **tags))[0], GREY)


def empty_table() -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", None)
    item.add_new("LUTData", "OW", b"")
    return item


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": None, "RescaleIntercept": -1024},
        {"VOILUTFunction": "", "WindowCenter": 2048, "WindowWidth": 4096},
        {"WindowCenter": ["", 2047.5], "WindowWidth": ["", 4095]},
        {"WindowCenter": ["", 2047.5], "WindowWidth": [9, 4095]},
        {"VOILUTSequence": [empty_table()]},
        {"VOILUTSequence": [Dataset()], "ModalityLUTSequence": [empty_table()]},
        {"VOILUTSequence": [empty_table(), lut(list(range(4096)), 0, 12)], "WindowWidth": 9},
        {"PixelPaddingValue": None, "PixelPaddingRangeLimit": None, "NumberOfFrames": None, "HighBit": None},
        {"SamplesPerPixel": None, "PresentationLUTShape": "", "PixelAspectRatio": None, "PixelSpacing": ""},
        {"ShutterShape": "", "ShutterPresentationValue": None, "PerFrameFunctionalGroupsSequence": []},
        {"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": None},
    ],
)
def test_an_empty_attribute_is_an_absent_one(tmp_path: Path, tags: dict, syntax: str) -> None:
    image = read_image(save(tmp_path / "a.dcm", syntax=syntax, **{**WINDOW, **tags}))[0]
    assert np.allclose(image, GREY, atol=2e-4)  # LINEAR's window is half a value away


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope is 0"),
        ({"VOILUTFunction": "LOG", **WINDOW} | {"VOILUTFunction": "LOG"}, "VOI LUT Function value"),
        ({"ShutterShape": "CIRCULAR"}, "CenterOfCircularShutter has 0 numbers"),
        ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 2, 2]}, "has 4 numbers, not 3 or more"),
        ({"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 7}, "padding or outside of the display shutter"),
        ({"HighBit": 3}, "HighBit 3 cannot be that of 12 of 16 bits"),
        ({"HighBit": 16}, "HighBit 16"),
        ({"pixels": np.tile(RAMP, (16, 16)), "HighBit": 16, "compress": JPEG2000Lossless}, "HighBit 16"),
        ({"BitsStored": None}, "has no BitsStored"),
        ({"BitsStored": 0}, "BitsStored 0 cannot be those of 16 bits"),
        ({"BitsStored": 17}, "BitsStored 17 cannot be those of 16 bits"),
        ({"PixelAspectRatio": [1, 10**8]}, "square pixels are more"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, tags: dict, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        read_image(save(tmp_path / "a.dcm", **tags))


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_a_number_that_is_none_is_named_without_its_text(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", **WINDOW)
    path.write_bytes(path.read_bytes().replace(b"2047.5", b"Smith^"))
    with pytest.raises(ImageError, match="its WindowCenter is not a number") as caught:
        read_image(path)
    assert "Smith" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("compress", ["", RLELossless])
@pytest.mark.parametrize("high", [13, 15])
def test_bits_may_lie_higher_in_their_word(tmp_path: Path, dtype: type, compress: str, high: int) -> None:
    values = RAMP.astype(np.int32) - (2048 if dtype == np.int16 else 0)
    word = (values << (high - 11) | 0b11) ^ (0b11 << (high + 1))  # around the stored bits: old overlays
    window = WINDOW | ({"WindowCenter": -0.5} if dtype == np.int16 else {})
    path = save(tmp_path / "a.dcm", word.astype(dtype), bits=12, compress=compress, HighBit=high, **window)
    assert close(read_image(path)[0], GREY)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "IDENTITY", False),
        ("MONOCHROME1", "LIN OD", True),
    ],
)
def test_the_presentation_lut_shape_decides(tmp_path: Path, photometric: str, shape: str, inverted: bool) -> None:
    tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    assert close(read_image(save(tmp_path / "a.dcm", **WINDOW, **tags))[0], 1 - GREY if inverted else GREY)


@pytest.mark.parametrize(("dtype", "vr", "value"), [(np.int16, "US", 65536 - 178), (np.uint16, "SS", -2)])
def test_padding_is_found_where_its_sign_is_not_that_of_the_pixels(
    tmp_path: Path, dtype: type, vr: str, value: int
) -> None:
    pixels = RAMP.astype(dtype)
    pixels[1, 1] = np.array(value).astype(dtype)
    path = save(tmp_path / "a.dcm", pixels, bits=16)
    ds = dcmread(path)
    ds.add_new("PixelPaddingValue", vr, value)
    ds.save_as(path)
    image = read_image(path)[0]
    assert image[1, 1] == 0
    assert image.max() == 1
    assert close(np.delete(image, 7), np.delete(RAMP / RAMP.max(), 7))


def test_what_functional_groups_say_of_the_one_frame_holds(tmp_path: Path) -> None:
    def group(**tags) -> Dataset:
        item = Dataset()
        for name, value in tags.items():
            setattr(item, name, value)
        return item

    rescale = group(PixelValueTransformationSequence=[group(RescaleSlope=2, RescaleIntercept=-100)])
    shown = group(
        FrameVOILUTSequence=[group(WindowCenter=1000, WindowWidth=2000, VOILUTFunction="LINEAR_EXACT")],
        FrameDisplayShutterSequence=[group(ShutterShape="RECTANGULAR", ShutterUpperHorizontalEdge=2)],
        PixelMeasuresSequence=[group(PixelSpacing=[0.2, 0.1])],
    )
    groups = {"SharedFunctionalGroupsSequence": [rescale], "PerFrameFunctionalGroupsSequence": [shown]}
    image = read_image(save(tmp_path / "a.dcm", NumberOfFrames=1, **groups))[0]
    expected = np.clip((RAMP * 2.0 - 100) / 2000, 0, 1)
    expected[0] = 0
    assert image.shape == (8, 6)
    assert close(image[[0, 7]], expected[[0, 3]])


CIRCLE = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [2, 3], "RadiusOfCircularShutter": 1}
RECTANGLE = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 2,
    "ShutterRightVerticalEdge": 4,
    "ShutterUpperHorizontalEdge": 1,
    "ShutterLowerHorizontalEdge": 2,
}


@pytest.mark.parametrize(
    ("tags", "shown"),
    [
        (RECTANGLE, [".###..", ".###..", "......", "......"]),
        (CIRCLE, ["..#...", ".###..", "..#...", "......"]),
        (RECTANGLE | CIRCLE | {"ShutterShape": ["RECTANGULAR", "CIRCULAR"]}, ["..#...", ".###..", "......", "......"]),
        (
            {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 1, 4, 4, 1]},
            ["####..", "###...", "##....", "#....."],
        ),
        ({"ShutterShape": "BITMAP"}, ["######"] * 4),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_outside_of_the_display_shutter_is_its_grey(
    tmp_path: Path, tags: dict, shown: list[str], photometric: str
) -> None:
    inside = np.array([[mark == "#" for mark in row] for row in shown])
    plain = read_image(save(tmp_path / "a.dcm", PhotometricInterpretation=photometric, **WINDOW))[0]
    for value, grey in ((None, 0.0), (0xFFFF, 1.0), (0x3333, 0.2)):
        more = {} if value is None else {"ShutterPresentationValue": value}
        path = save(tmp_path / "a.dcm", PhotometricInterpretation=photometric, **WINDOW, **tags, **more)
        assert close(read_image(path)[0], np.where(inside, plain, grey))


def test_the_radius_of_a_circular_shutter_is_one_along_a_row(tmp_path: Path) -> None:
    ds = dcmread(save(tmp_path / "a.dcm", **CIRCLE | {"RadiusOfCircularShutter": 2}, PixelAspectRatio=[2, 1]))
    shown = ~dicom._shutter(ds, RAMP.shape)[0]
    assert shown.tolist() == [[mark == "#" for mark in row] for row in ("..#...", "#####.", "..#...", "......")]


def test_what_the_shutter_hides_does_not_set_the_range(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.dcm", **RECTANGLE))[0]
    assert (image[0, 1], image[1, 3]) == (0, 1)


@pytest.mark.parametrize(
    ("tags", "shape"),
    [
        ({"PixelAspectRatio": [2, 1]}, (8, 6)),
        ({"PixelAspectRatio": [1, 3]}, (4, 18)),
        ({"ImagerPixelSpacing": [0.15, 0.1]}, (6, 6)),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [2, 1]}, (4, 6)),
        ({"PixelSpacing": [0.1, 0.1009]}, (4, 6)),
        ({"PixelSpacing": [0, 1]}, (4, 6)),
    ],
)
def test_pixels_are_made_square(tmp_path: Path, tags: dict, shape: tuple[int, int]) -> None:
    image = read_image(save(tmp_path / "a.dcm", **WINDOW, **tags))[0]
    assert image.shape == shape
    assert np.allclose(image[[0, -1]][:, [0, -1]], GREY[[0, -1]][:, [0, -1]], atol=1e-3)
    if shape == (4, 6):
        assert close(image, GREY)


def test_of_a_large_image_no_more_than_a_part_is_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_image(save(tmp_path / "a.dcm", RescaleSlope=2, RescaleIntercept=-7))
    monkeypatch.setattr(dicom, "bands", lambda shape: (slice(row, row + 1) for row in range(shape[0])))
    assert np.array_equal(read_image(tmp_path / "a.dcm"), expected)


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
    monkeypatch.setattr(dicom_file, "MAX_PIXELS", RAMP.size - 1)
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


def test_bits_that_no_jpeg_has_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", np.zeros((32, 48), np.uint16), compress=JPEG2000Lossless)
    content = dcmread(path)
    content.BitsAllocated = 32
    content.save_as(path)
    with pytest.raises(ImageError, match="its BitsAllocated 32 cannot be that of a JPEG image"):
        read_image(path)
