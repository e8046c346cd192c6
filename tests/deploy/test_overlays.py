"""The picture of an answer: the file's own pixels, the map where it belongs, and a legend."""

import numpy as np
import pytest
from PIL import Image

from tests.deploy.made_dicom import dicom
from vivid_monai.deploy.overlays import Heat, save_overlay, to_original
from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess

RNG = np.random.default_rng(0)


def peak(row: int, column: int, side: int = 7) -> np.ndarray:
    values = np.full((side, side), -0.2, np.float32)
    values[row, column] = 0.8
    return values


def centre(values: np.ndarray) -> tuple[float, ...]:
    weights = np.clip(values, 0, None)
    places = np.indices(values.shape) + 0.5
    return tuple(float((place * weights).sum() / weights.sum()) for place in places)


@pytest.mark.parametrize(
    ("preprocess", "spatial", "cell", "expected"),
    [
        (Preprocess(size=56), (56, 56), (2, 5), (20, 44)),  # from row 16 to 24, and from column 40 to 48
        (Preprocess(size=56), (224, 112), (2, 3), (80, 56)),  # 14 black columns of the network's at each side
        (Preprocess(size=56, resize="stretch"), (112, 224), (2, 5), (40, 176)),
        (Preprocess(size=56, resize="crop"), (56, 112), (2, 5), (20, 72)),  # 28 columns at each side are not seen
        (Preprocess(size=56, resize="crop", resize_to=112), (112, 112), (2, 5), (48, 72)),
    ],
)
def test_a_map_lies_where_the_network_saw(preprocess, spatial, cell, expected):
    moved = to_original(peak(*cell), preprocess, spatial)
    assert moved.shape == spatial
    assert centre(moved) == pytest.approx(expected, abs=1.0)


def test_what_is_cut_off_has_no_map():
    moved = to_original(np.ones((7, 7), np.float32), Preprocess(size=56, resize="crop"), (56, 112))
    assert (moved[:, :27] == 0).all()
    assert (moved[:, 30:82] == 1).all()
    assert (moved[:, 85:] == 0).all()


def read(path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture).astype(int)


def test_the_picture_has_the_pixels_of_the_file_and_a_legend(tmp_path):
    pixels = RNG.integers(40, 60, (400, 500), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    heats = [Heat("Edema", 0.91, peak(0, 6)), Heat("Fracture", 0.123, np.full((7, 7), -0.2, np.float32))]
    save_overlay(tmp_path / "a.png", heats, Preprocess(size=56, resize="stretch"), tmp_path / "deep" / "o.png")
    drawn = read(tmp_path / "deep" / "o.png")
    line = (drawn.shape[0] - 400) // 3
    first, second = drawn[line : line + 400, :500], drawn[line : line + 400, -500:]
    assert drawn.shape[1] > 1000
    assert (second == pixels[..., None]).all(), "what has no evidence is the image alone"
    assert (first[100:, :300] == pixels[100:, :300, None]).all()
    assert first[:40, -50:, 0].mean() > 150
    head, foot = drawn[:line], drawn[line + 400 :]
    assert (head > 200).sum() > 200
    assert (foot[:, :500] > 100).sum() > 200
    coloured = (foot.max(2) - foot.min(2) > 60).any(0)
    assert coloured[:500].any(), "the range of the colours"
    assert not coloured[510:].any()


def test_a_small_file_keeps_its_pixels_and_has_a_legend_that_can_be_read(tmp_path):
    pixels = RNG.integers(0, 255, (16, 12), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    name = "Enlarged Cardiomediastinum, Überlagerung"
    save_overlay(tmp_path / "a.png", [Heat(name, 0.5, -peak(0, 0))], Preprocess(size=16), tmp_path / "o.png")
    drawn = read(tmp_path / "o.png")
    line = (drawn.shape[0] - 16) // 3
    assert drawn.shape[1] > 200
    assert line > 12


def test_dicom_is_drawn_as_it_is_read(tmp_path):
    pixels = RNG.integers(0, 255, (60, 60), dtype=np.uint8)
    path = dicom(tmp_path / "a.dcm", inverted=True, pixels=pixels)
    nothing = Heat("Edema", 0.5, np.zeros((7, 7), np.float32))
    save_overlay(path, [nothing], Preprocess(size=56), tmp_path / "o.png")
    drawn = read(tmp_path / "o.png")
    line = (drawn.shape[0] - 60) // 3
    assert np.abs(drawn[line : line + 60, :60, 0] - pixels).max() <= 1


def test_a_file_that_has_gone_is_named(tmp_path):
    with pytest.raises(VividError, match="gone"):
        save_overlay(tmp_path / "gone.png", [], Preprocess(), tmp_path / "o.png")
