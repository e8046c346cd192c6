"""Preprocessing: what a network sees, and the JSON that keeps it with the weights."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from vivid_monai.errors import VividError
from vivid_monai.images.preprocess import Preprocess, plain_tensors

pytestmark = pytest.mark.numeric


def save(pixels: np.ndarray, path: Path) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def run(preprocess: Preprocess, path: Path) -> torch.Tensor:
    return preprocess.transform()({"image": path})["image"].as_tensor()


def test_json_keeps_everything() -> None:
    preprocess = Preprocess(size=96, channels=3, mean=(0.1, 0.2, 0.3), std=0.2, resize="crop", resize_to=110, slices=3)
    preprocess = replace(preprocess, window=(-600, 1500))
    again = Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert again == preprocess
    assert hash(again) == hash(preprocess)
    assert again.std == (0.2, 0.2, 0.2)
    assert Preprocess.from_dict(json.loads(json.dumps(Preprocess().to_dict()))) == Preprocess()


def test_json_with_other_keys_is_refused_by_name() -> None:
    values = Preprocess().to_dict()
    del values["std"]
    with pytest.raises(VividError, match=r"missing keys \['std'\], unknown keys \['sdt'\]"):
        Preprocess.from_dict({**values, "sdt": 0.2})


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 224.0},
        {"channels": 2},
        {"mean": (0.5, 0.5)},
        {"mean": "0.5"},
        {"mean": float("nan")},
        {"std": 10**400},
        {"std": 0},
        {"std": ()},
        {"channels": 3, "std": (0.2, 0.2)},
        {"resize": "squash"},
        {"resize": "crop", "resize_to": 223},
        {"resize": "stretch", "resize_to": 256.0},
        {"resize": "pad", "resize_to": 256},
        {"slices": 2},
        {"slices": True},
        {"interpolation": "nearest"},
        {"window": (40, 0)},
        {"window": (40,)},
    ],
)
def test_values_that_cannot_be_meant_are_refused(wrong: dict) -> None:
    with pytest.raises(VividError, match=f"preprocess: {list(wrong)[-1]} must be"):
        Preprocess(**wrong)


def test_an_image_of_the_right_size_is_only_normalised(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32))
    image = run(Preprocess(size=32, mean=0.4, std=0.2), save(pixels, tmp_path / "a.png"))
    assert image.dtype == torch.float32
    assert image.shape == (1, 32, 32)
    assert np.allclose(image[0], (pixels / 255 - 0.4) / 0.2, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_reduction_equals_pillows_antialiased_one(tmp_path: Path, interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200)).astype(np.uint8)
    image = run(Preprocess(size=60, mean=0, std=1, interpolation=interpolation), save(pixels, tmp_path / "a.png"))
    kind = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(pixels.astype(np.float32)).resize((40, 60), kind)).clip(0, 255)
    assert image.shape == (1, 60, 60)
    assert np.abs(image[0, :, 10:50].numpy() * 255 - expected).max() < 0.51  # both rounded to bytes
    assert not image[0, :, :10].any()
    assert not image[0, :, 50:].any()


def test_padding_keeps_the_whole_image_and_its_aspect_ratio(tmp_path: Path) -> None:
    wide = run(Preprocess(size=40, mean=0.5, std=0.25), save(np.full((50, 100), 255), tmp_path / "a.png"))
    assert torch.equal(wide[0, 10:30], torch.full((20, 40), 2.0))
    assert torch.equal(wide[0, :10], torch.full((10, 40), -2.0))  # padding is black before the normalisation
    assert torch.equal(wide[0, 30:], torch.full((10, 40), -2.0))


def test_cropping_covers_the_square_from_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((50, 100))
    pixels[:, 25:75] = 255
    image = run(Preprocess(size=50, mean=0, std=1, resize="crop"), save(pixels, tmp_path / "a.png"))
    assert torch.equal(image, torch.ones(1, 50, 50))


def pillow(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bilinear in floating point, in [0, 1]."""
    return (
        np.asarray(Image.fromarray(pixels.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)) / 255
    )


@pytest.mark.parametrize(
    ("settings", "resized", "top", "left"),
    [
        ({"resize": "crop"}, (40, 61), 0, 10),  # 40 * 101 / 66 = 61.2: the long side is rounded down
        ({"resize": "crop", "resize_to": 48}, (48, 73), 4, 16),
        ({"resize": "stretch"}, (40, 40), 0, 0),
        ({"resize": "stretch", "resize_to": 48}, (48, 48), 4, 4),
    ],
)
def test_the_rules_of_other_peoples_processors(
    tmp_path: Path, settings: dict, resized: tuple[int, int], top: int, left: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (66, 101)).astype(np.uint8)
    image = run(Preprocess(size=40, mean=0, std=1, **settings), save(pixels, tmp_path / "a.png"))
    expected = pillow(pixels, *resized)[top : top + 40, left : left + 40]
    assert np.abs(image[0].numpy() - expected).max() < 0.51 / 255


def test_nothing_said_of_resize_to_means_the_size_itself() -> None:
    assert Preprocess(size=96, resize="crop") == Preprocess(size=96, resize="crop", resize_to=96)
    assert Preprocess(size=96).to_dict()["resize_to"] == 96


@pytest.mark.parametrize(("channels", "mean"), [(1, (0.5,) * 3), (3, (0.1, 0.2, 0.3))])
def test_three_slices_are_three_channels(tmp_path: Path, channels: int, mean: tuple[float, ...]) -> None:
    volume = np.zeros((8, 8, 5), np.float32)
    volume[:] = np.arange(5) / 10
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "a.nii")
    preprocess = Preprocess(size=8, channels=channels, mean=mean[:channels], std=1, window=(0.5, 1), slices=3)
    image = preprocess.transform()({"image": tmp_path / "a.nii", "slice": 2})["image"]
    assert image.shape == (3, 8, 8)
    expected = np.array([0.1, 0.2, 0.3]) - mean
    assert np.allclose(image.as_tensor().numpy(), expected[:, None, None], atol=0.51 / 255)


def test_three_slices_of_a_flat_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        run(Preprocess(slices=3), save(np.zeros((4, 4)), tmp_path / "a.png"))
    assert "slices cannot be applied to a PNG" in str(caught.value.__cause__)


def test_a_small_image_is_enlarged(tmp_path: Path) -> None:
    image = run(Preprocess(size=64, mean=0, std=1), save(np.full((8, 4), 102), tmp_path / "a.png"))
    assert torch.allclose(image[0, :, 16:48], torch.tensor(102 / 255))


def test_a_strip_keeps_at_least_one_pixel(tmp_path: Path) -> None:
    image = run(Preprocess(size=16, mean=0, std=1), save(np.full((1, 100), 255), tmp_path / "a.png"))
    assert image.shape == (1, 16, 16)
    assert image.sum() == 16


def test_three_channels_repeat_the_grey_and_are_normalised_each(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = run(Preprocess(size=32, channels=3, mean=mean, std=std), save(pixels, tmp_path / "a.png"))
    for channel in range(3):
        assert np.allclose(image[channel], (pixels / 255 - mean[channel]) / std[channel], atol=1e-5)


def test_the_window_reaches_the_reader(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        run(Preprocess(window=(40, 400)), save(np.zeros((4, 4)), tmp_path / "a.png"))
    assert "window cannot be applied to a PNG" in str(caught.value.__cause__)


def test_other_keys_and_the_rest_of_the_item_are_respected(tmp_path: Path) -> None:
    path = save(np.zeros((4, 4)), tmp_path / "a.png")
    item = Preprocess(size=8).transform(["prior", "now"])({"prior": path, "now": path, "id": "7"})
    assert item["prior"].shape == item["now"].shape == (1, 8, 8)
    assert item["id"] == "7"


def test_values_do_not_depend_on_monais_metadata_tracking(tmp_path: Path) -> None:
    path = save(np.random.default_rng(0).integers(0, 256, (50, 37)), tmp_path / "a.png")
    tracked = run(Preprocess(size=24, channels=3), path)
    with plain_tensors():
        plain = Preprocess(size=24, channels=3).transform()({"image": path})["image"]
    assert type(plain) is torch.Tensor
    assert torch.equal(plain, tracked)


@pytest.mark.real_data
def test_full_size_radiographs_equal_pillows_reduction(real_data: Path) -> None:
    for path in sorted((real_data / "nih_fullsize").glob("*.png"))[:3]:
        image = run(Preprocess(mean=0, std=1), path)[0].numpy()
        with Image.open(path) as original:
            expected = np.asarray(original.resize((224, 224), Image.Resampling.BILINEAR))
        assert np.abs(image * 255 - expected).max() < 1.01  # Pillow rounds to bytes between rows and columns too
