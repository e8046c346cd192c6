"""What is not like the training images to the eye is refused, whatever the network makes of it."""

import csv

import numpy as np
import pytest
import torch

from vivid_monai.deploy.ood import OODDetector, ThumbnailEncoder
from vivid_monai.deploy.ood_score import CELLS, DIRECTIONS, SIDE, WIDTH, thumbnail_features
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.phantom import generate

SIZE = 32


def rows(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W) in [0, 1] → rows of an assessment."""
    return thumbnail_features((torch.from_numpy(images).float()[:, None] - 0.5) / 0.25).numpy()


def edges(image: np.ndarray) -> np.ndarray:
    """The histograms of one thumbnail (SIDE, SIDE), pixel by pixel: (DIRECTIONS, CELLS, CELLS), before their roots."""
    framed, side = np.pad(image.astype(np.float64), 1, mode="edge"), SIDE // CELLS
    histograms = np.zeros((DIRECTIONS, CELLS, CELLS))
    for y in range(SIDE):
        for x in range(SIDE):
            across = framed[y + 1, x + 2] - framed[y + 1, x]
            down = framed[y + 2, x + 1] - framed[y, x + 1]
            for direction in range(DIRECTIONS):
                turn = np.arctan2(down, across) - 2 * np.pi * direction / DIRECTIONS
                share = max(np.cos(turn), 0) ** 2 * np.hypot(across, down)
                histograms[direction, y // side, x // side] += share / side**2
    return histograms


def test_appearance_is_where_edges_run_and_the_light():
    images = torch.rand(5, 1, 2 * SIDE, 3 * SIDE)
    got = thumbnail_features(images)
    assert (got.shape, got.dtype) == ((5, WIDTH), torch.float32)
    for image, row in zip(images.numpy(), got.numpy(), strict=True):
        expected = edges(image.reshape(SIDE, 2, SIDE, 3).mean((1, 3)))
        np.testing.assert_allclose(row[:-2] ** 2, expected.ravel() / expected.mean(), rtol=3e-3)
        light = image.reshape(8, 2 * SIDE // 8, 8, 3 * SIDE // 8).mean((1, 3))
        np.testing.assert_allclose(row[-2:], (light.mean(), np.log(light.std())), rtol=1e-4)


@pytest.mark.parametrize(("direction", "dark"), [(0, "left"), (2, "top"), (4, "right"), (6, "bottom")])
def test_an_edge_from_dark_to_bright_has_its_own_direction(direction, dark):
    ramp = torch.linspace(0, 1, SIDE).expand(SIDE, SIDE)
    image = {"left": ramp, "top": ramp.T, "right": ramp.flip(1), "bottom": ramp.T.flip(0)}[dark]
    found = thumbnail_features(image[None, None])[0, :-2].reshape(DIRECTIONS, -1).square().mean(1)
    assert found.argmax() == direction
    assert found[(direction + 4) % DIRECTIONS] < 1e-6


def test_brightness_and_contrast_do_not_change_where_edges_run():
    images = torch.rand(3, 1, 32, 32)
    plain, other = thumbnail_features(images), thumbnail_features(0.5 * images + 0.2)
    torch.testing.assert_close(other[:, :-2], plain[:, :-2], rtol=0, atol=2e-3)
    torch.testing.assert_close(other[:, -2], 0.5 * plain[:, -2] + 0.2)
    torch.testing.assert_close(other[:, -1], plain[:, -1] + np.log(0.5))


def test_several_channels_are_seen_as_their_mean_and_an_empty_image_has_no_contrast():
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(thumbnail_features(images), thumbnail_features(images.mean(1, keepdim=True)))
    empty = thumbnail_features(torch.full((1, 1, 32, 32), 0.7).double())
    assert empty.dtype == torch.float32
    assert torch.isfinite(empty).all()
    assert (empty[0, :-2] == 0).all()
    assert empty[0, -1] == pytest.approx(np.log(1e-3))


def test_an_encoder_gives_them_as_features():
    preprocess = Preprocess(size=16)
    one = ThumbnailEncoder(preprocess)
    images = torch.rand(4, 1, 16, 16)
    assert one.dim == WIDTH
    assert one.fingerprint() != ThumbnailEncoder(Preprocess(size=16, mean=0.4)).fingerprint()
    assert one.settings["hog"] == [SIDE, CELLS, DIRECTIONS]  # others are another entry of a cache
    torch.testing.assert_close(one(images), thumbnail_features(images), rtol=0, atol=0)


@pytest.fixture(scope="module")
def phantoms():
    """Frontal phantoms (N, H, W), their views, and lateral ones."""
    all_ = [generate(0, i, size=SIZE) for i in range(420)]
    frontal = [one for one in all_ if one.record.view != "lateral"]
    lateral = np.stack([one.image for one in all_ if one.record.view == "lateral"]) / 255
    return np.stack([one.image for one in frontal]) / 255, np.array([one.record.view for one in frontal]), lateral


@pytest.fixture(scope="module")
def fitted(phantoms) -> OODDetector:
    described = rows(phantoms[0][:240])
    return OODDetector.fit(described[:180], described[180:], (np.arange(180), np.arange(180, 240)))


def test_new_frontal_phantoms_are_answered_in_both_views(phantoms, fitted):
    images, views, _ = phantoms
    for view in ("PA", "AP"):
        new = images[240:][views[240:] == view]
        assert len(new) > 20
        assert fitted.accepts(rows(new)).mean() >= 0.95


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.zeros_like(x),
        lambda x: np.ones_like(x),
        lambda x: np.full_like(x, 0.5),
        lambda x: np.random.default_rng(0).random(x.shape),
        lambda x: 1 - x,
        lambda x: x[:, ::-1].copy(),
        lambda x: x.transpose(0, 2, 1).copy(),
    ],
    ids=("black", "white", "grey", "noise", "inverted", "upside down", "on its side"),
)
def test_what_is_no_frontal_phantom_is_refused(phantoms, fitted, change):
    assert fitted.accepts(rows(change(phantoms[0][240:]))).mean() <= 0.02


def test_lateral_views_are_refused_where_none_were_trained_and_answered_where_some_were(phantoms, fitted):
    images, _, lateral = phantoms
    assert len(lateral) > 40
    assert fitted.accepts(rows(lateral)).mean() <= 0.02
    mixed = rows(np.concatenate([images[:180], lateral[:40]]))
    both = OODDetector.fit(mixed, rows(images[180:240]), (np.arange(220), np.arange(220, 280)))
    assert both.accepts(rows(lateral[40:])).mean() >= 0.8


@pytest.mark.real_data
def test_real_radiographs_are_answered_and_other_things_are_not(real_data):
    paths = sorted((real_data / "nih" / "images_001" / "images").glob("*.png"))
    thumbnails = np.stack([_square(path) for path in paths])
    patients = np.array([path.name.split("_")[0] for path in paths])
    number = np.unique(patients, return_inverse=True)[1]
    train, val, test = number < 300, (number >= 300) & (number < 360), number >= 360
    described = rows(thumbnails)
    one = OODDetector.fit(described[train], described[val], patients=(patients[train], patients[val]))
    assert one.accepts(described[test]).mean() >= 0.95
    assert one.accepts(rows(1 - thumbnails[test])).mean() <= 0.1
    assert one.accepts(rows(thumbnails[test][:, ::-1].copy())).mean() <= 0.2
    slices = [_square(path) for path in sorted((real_data / "ct" / "dicom_series").iterdir())]
    assert not one.accepts(rows(np.stack(slices))).any()
    with (real_data / "covid" / "metadata.csv").open(encoding="utf-8", errors="replace") as file:
        views = {row["filename"]: row["view"] for row in csv.DictReader(file)}
    covid = real_data / "covid" / "images"
    for view, least, most in (("L", 0.0, 0.1), ("PA", 0.8, 1.0)):
        seen = [_square(path) for path in sorted(covid.iterdir()) if views.get(path.name) == view]
        assert least <= one.accepts(rows(np.stack(seen))).mean() <= most


def _square(path) -> np.ndarray:
    return Preprocess(size=64).transform()({"image": path})["image"].numpy()[0] * 0.25 + 0.5
