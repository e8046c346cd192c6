"""Training transforms: how far they go, that they are seeded throughout, and when a flip is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, OneOf, RandAdjustContrastd, Randomizable, RandRotated
from PIL import Image

from vivid_monai.data.preprocess import Preprocess
from vivid_monai.data.transforms import Augment, train_transform
from vivid_monai.errors import VividError

PLAIN = Preprocess(size=64, mean=0, std=1)
STILL = {"rotate": 0, "translate": 0, "scale": 0, "brightness": 0, "contrast": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bright square on a grey ground, off the middle."""
    pixels = np.full((64, 64), 60, np.uint8)
    pixels[20:36, 36:52] = 180
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def draw(transform: Compose, path: Path, seed: int) -> torch.Tensor:
    return transform.set_random_state(seed=seed)({"image": path})["image"].as_tensor()


def centre(image: torch.Tensor, above: float) -> tuple[float, float]:
    rows, columns = torch.nonzero(image[0] > above, as_tuple=True)
    return float(rows.float().mean()), float(columns.float().mean())


def test_without_augmentation_it_is_the_preprocessing(path: Path) -> None:
    image = draw(train_transform(PLAIN, Augment(**STILL)), path, 0)
    assert torch.equal(image, PLAIN.transform()({"image": path})["image"].as_tensor())


def test_seeds_decide_everything(path: Path) -> None:
    transform = train_transform(PLAIN)
    first = draw(transform, path, 1)
    np.random.seed(0)  # noqa: NPY002 – the global state is what must not matter
    torch.manual_seed(0)
    others = [draw(transform, path, seed) for seed in (2, 3)]
    assert torch.equal(draw(transform, path, 1), first)
    assert torch.equal(draw(train_transform(PLAIN), path, 1), first)
    assert all(not torch.equal(first, other) for other in others)
    assert not torch.equal(*others)


def test_every_random_step_is_reached_by_the_seed() -> None:
    transform = train_transform(PLAIN, Augment(flip=0.5), sided=False)
    steps = [step for step in transform.transforms if isinstance(step, Randomizable)]
    assert len(steps) == 4
    transform.set_random_state(seed=7)
    before = [step.R.get_state()[1].tolist() for step in steps]
    for step in steps:
        step.R.random_sample(3)
    transform.set_random_state(seed=7)
    assert [step.R.get_state()[1].tolist() for step in steps] == before
    assert len({tuple(state) for state in before}) == 4


def test_a_seed_reaches_nested_compositions(path: Path) -> None:
    choice = OneOf([RandRotated("image", range_x=0.3, prob=1.0), RandAdjustContrastd("image", prob=1.0)])
    nested = Compose([*PLAIN.to_bytes(), *PLAIN.to_unit(), Compose([choice])])
    images = [draw(nested, path, seed) for seed in (1, 1, 2, 3, 4)]
    assert torch.equal(images[0], images[1])
    assert any(not torch.equal(images[0], other) for other in images[2:])


def test_nothing_is_resampled_lazily() -> None:
    assert train_transform(PLAIN).lazy is False
    assert PLAIN.transform().lazy is False


def test_values_stay_between_black_and_white(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8) * 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    transform = train_transform(PLAIN, Augment(brightness=0.5, contrast=0.5))
    for seed in range(10):
        image = draw(transform, tmp_path / "a.png", seed)
        assert image.min() >= 0
        assert image.max() <= 1


def test_shifts_fill_their_range_and_no_more(path: Path) -> None:
    transform = train_transform(PLAIN, Augment(**{**STILL, "translate": 0.05}))
    shifts = np.array([centre(draw(transform, path, seed), 0.45) for seed in range(60)]) - [27.5, 43.5]
    assert np.abs(shifts).max() <= 3.2 + 0.5
    assert (np.abs(shifts).max(0) > 2.2).all()
    assert (shifts.min(0) < -1).all()


def test_rotations_are_in_degrees(path: Path) -> None:
    transform = train_transform(PLAIN, Augment(**{**STILL, "rotate": 10}))
    start = math.atan2(27.5 - 31.5, 43.5 - 31.5)
    turned = []
    for seed in range(40):
        row, column = centre(draw(transform, path, seed), 0.45)
        turned.append(math.degrees(math.atan2(row - 31.5, column - 31.5) - start))
    assert max(map(abs, turned)) < 10.5
    assert max(turned) > 7
    assert min(turned) < -7


def test_brightness_scales_and_contrast_keeps_the_mean(path: Path) -> None:
    original = PLAIN.transform()({"image": path})["image"].as_tensor()
    factors = []
    for seed in range(30):
        brighter = draw(train_transform(PLAIN, Augment(**{**STILL, "brightness": 0.1})), path, seed) / original
        assert brighter.std() < 1e-5
        factors.append(float(brighter.mean()))
        contrast = draw(train_transform(PLAIN, Augment(**{**STILL, "contrast": 0.1})), path, seed)
        assert abs(float(contrast.mean() - original.mean())) < 1e-5
        assert 0.89 < float(contrast.std() / original.std()) < 1.11
        assert abs(float(contrast.std() / original.std()) - 1) > 1e-6
    assert 0.899 < min(factors) < 0.95
    assert 1.05 < max(factors) < 1.101


def test_a_flip_mirrors_left_and_right(path: Path) -> None:
    flipped = draw(train_transform(PLAIN, Augment(**{**STILL, "flip": 1}), sided=False), path, 0)
    original = PLAIN.transform()({"image": path})["image"].as_tensor()
    assert torch.equal(flipped, original.flip(-1))


def test_nothing_is_flipped_unless_asked_for(path: Path) -> None:
    assert Augment().flip == 0
    transform = train_transform(PLAIN)
    assert all(centre(draw(transform, path, seed), 0.45)[1] > 36 for seed in range(20))


@pytest.mark.parametrize(("sided", "says"), [(True, "tells left from right"), (None, "is not said")])
def test_a_flip_is_refused_where_sides_matter(sided: bool | None, says: str) -> None:
    with pytest.raises(VividError, match=says):
        train_transform(PLAIN, Augment(flip=0.5), sided=sided)
    train_transform(PLAIN, Augment(), sided=sided)


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"rotate": -1}, {"scale": 1}, {"translate": float("nan")}])
def test_impossible_augmentation_is_refused(wrong: dict) -> None:
    with pytest.raises(VividError, match=f"augment: {next(iter(wrong))} must be between"):
        Augment(**wrong)
