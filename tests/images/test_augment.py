"""Augmentation: MONAI's, batch by batch; how far it goes, that it is seeded throughout, and when a flip is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    ScaleIntensityRanged,
)
from PIL import Image

from vivid_monai.errors import VividError
from vivid_monai.images.augment import Augment, Drawn, RandomAugmentation
from vivid_monai.images.preprocess import Preprocess, VolumePreprocess

pytestmark = pytest.mark.numeric

PLAIN = Preprocess(size=64, mean=0, std=1)
STILL = {"rotate": 0, "translate": 0, "scale": 0, "brightness": 0, "contrast": 0}
NO_AFFINE = {"rotate": 0, "translate": 0, "scale": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bright square on a grey ground, off the middle."""
    pixels = np.full((64, 64), 60, np.uint8)
    pixels[20:36, 36:52] = 180
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def draw(augmentation: RandomAugmentation, path: Path, seed: int) -> torch.Tensor:
    """One image of 64 px."""
    pixels = PLAIN.transform(stages=["stored"])({"image": path})["image"]
    return augmentation(torch.as_tensor(pixels)[None], Drawn.stack([augmentation.draw(seed)]))[0]


def centre(image: torch.Tensor, above: float) -> tuple[float, float]:
    rows, columns = torch.nonzero(image[0] > above, as_tuple=True)
    return float(rows.float().mean()), float(columns.float().mean())


def by_monai(preprocess: Preprocess, augment: Augment) -> Compose:
    """uint8 image → network input, item by item, as MONAI has it."""
    size, key = preprocess.size, "image"
    flip = [RandFlipd(key, prob=augment.flip, spatial_axis=1)] if augment.flip else []
    affine = RandAffined(
        key,
        prob=1.0,
        rotate_range=math.radians(augment.rotate),
        translate_range=(augment.translate * size,) * 2,
        scale_range=(augment.scale,) * 2,
        mode="bilinear",
        padding_mode="zeros",
    )
    return Compose(
        [
            *preprocess.transform(stages=["unit"]).transforms,
            *flip,
            *([affine] if augment.rotate or augment.translate or augment.scale else []),
            RandScaleIntensityd(key, factors=augment.brightness, prob=1.0),
            RandScaleIntensityFixedMeand(key, factors=augment.contrast, prob=1.0),
            ScaleIntensityRanged(key, a_min=0, a_max=1, b_min=0, b_max=1, clip=True),
            *preprocess.transform(stages=["normal"]).transforms,
        ]
    )


def both(preprocess: Preprocess, augment: Augment, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """The same noise, augmented by MONAI item by item, and here as a batch."""
    generator = torch.Generator().manual_seed(0)
    shape = (n, preprocess.slices, preprocess.size, preprocess.size)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    monai, ours = by_monai(preprocess, augment), RandomAugmentation(preprocess, augment, sided=False)
    items = []
    for seed, image in enumerate(pixels):
        monai.set_random_state(seed=seed)
        items.append(torch.as_tensor(monai({"image": image})["image"]))
    drawn = Drawn.stack([ours.draw(seed) for seed in range(n)])
    return torch.stack(items), ours(pixels, drawn)


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(size=112),
        Preprocess(size=40, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Preprocess(size=40, channels=3, slices=3, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3)),
        Preprocess(size=40, slices=3, mean=0.4, std=0.3),
    ],
    ids=["grey", "colour", "three slices", "three slices, one channel"],
)
@pytest.mark.parametrize("flip", [0, 0.5])
def test_without_an_affine_map_a_batch_is_monais_bit_for_bit(preprocess: Preprocess, flip: float) -> None:
    monai, ours = both(preprocess, Augment(**NO_AFFINE, flip=flip))
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert torch.equal(ours, monai)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        Augment(flip=0.5),
        Augment(rotate=180, translate=0.3, scale=0.4, brightness=0.5, contrast=0.5),
        Augment(rotate=0, translate=0),
    ],
    ids=["default", "flip", "far", "scale alone"],
)
def test_with_an_affine_map_a_batch_is_monais(augment: Augment) -> None:
    monai, ours = both(Preprocess(size=64, mean=0, std=1), augment)
    torch.testing.assert_close(ours, monai, atol=1e-5, rtol=0)


def test_without_augmentation_it_is_the_preprocessing(path: Path) -> None:
    image = draw(RandomAugmentation(PLAIN, Augment(**STILL)), path, 0)
    assert torch.equal(image, PLAIN.transform()({"image": path})["image"].as_tensor())


def test_seeds_decide_everything(path: Path) -> None:
    augmentation = RandomAugmentation(PLAIN)
    first = draw(augmentation, path, 1)
    np.random.seed(0)  # noqa: NPY002 – the global state is what must not matter
    torch.manual_seed(0)
    others = [draw(augmentation, path, seed) for seed in (2, 3)]
    assert torch.equal(draw(augmentation, path, 1), first)
    assert torch.equal(draw(RandomAugmentation(PLAIN), path, 1), first)
    assert all(not torch.equal(first, other) for other in others)
    assert not torch.equal(*others)


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    augmentation = RandomAugmentation(PLAIN, Augment(flip=0.5), sided=False)
    drawn = Drawn.stack([augmentation.draw(seed) for seed in range(20)])
    again = Drawn.stack([augmentation.draw(seed) for seed in reversed(range(20))])
    assert all(torch.equal(one, other.flip(0)) for one, other in zip(drawn, again, strict=True))
    assert all(len(set(column.tolist())) == 20 for part in drawn[1:] for column in part.reshape(20, -1).T)
    assert set(drawn.mirrored.tolist()) == {0, 1}


def test_values_stay_between_black_and_white(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8) * 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    augmentation = RandomAugmentation(PLAIN, Augment(brightness=0.5, contrast=0.5))
    for seed in range(10):
        image = draw(augmentation, tmp_path / "a.png", seed)
        assert image.min() >= 0
        assert image.max() <= 1


def test_shifts_fill_their_range_and_no_more(path: Path) -> None:
    augmentation = RandomAugmentation(PLAIN, Augment(**{**STILL, "translate": 0.05}))
    shifts = np.array([centre(draw(augmentation, path, seed), 0.45) for seed in range(60)]) - [27.5, 43.5]
    assert np.abs(shifts).max() <= 3.2 + 0.5
    assert (np.abs(shifts).max(0) > 2.2).all()
    assert (shifts.min(0) < -1).all()


def test_rotations_are_in_degrees(path: Path) -> None:
    augmentation = RandomAugmentation(PLAIN, Augment(**{**STILL, "rotate": 10}))
    start = math.atan2(27.5 - 31.5, 43.5 - 31.5)
    turned = []
    for seed in range(40):
        row, column = centre(draw(augmentation, path, seed), 0.45)
        turned.append(math.degrees(math.atan2(row - 31.5, column - 31.5) - start))
    assert max(map(abs, turned)) < 10.5
    assert max(turned) > 7
    assert min(turned) < -7


def test_brightness_scales_and_contrast_keeps_the_mean(path: Path) -> None:
    original = PLAIN.transform()({"image": path})["image"].as_tensor()
    factors = []
    for seed in range(30):
        brighter = draw(RandomAugmentation(PLAIN, Augment(**{**STILL, "brightness": 0.1})), path, seed) / original
        assert brighter.std() < 1e-5
        factors.append(float(brighter.mean()))
        contrast = draw(RandomAugmentation(PLAIN, Augment(**{**STILL, "contrast": 0.1})), path, seed)
        assert abs(float(contrast.mean() - original.mean())) < 1e-5
        assert 0.89 < float(contrast.std() / original.std()) < 1.11
        assert abs(float(contrast.std() / original.std()) - 1) > 1e-6
    assert 0.899 < min(factors) < 0.95
    assert 1.05 < max(factors) < 1.101


def test_a_flip_mirrors_left_and_right(path: Path) -> None:
    flipped = draw(RandomAugmentation(PLAIN, Augment(**{**STILL, "flip": 1}), sided=False), path, 0)
    original = PLAIN.transform()({"image": path})["image"].as_tensor()
    assert torch.equal(flipped, original.flip(-1))


def test_nothing_is_flipped_unless_asked_for(path: Path) -> None:
    assert Augment().flip == 0
    augmentation = RandomAugmentation(PLAIN)
    assert all(centre(draw(augmentation, path, seed), 0.45)[1] > 36 for seed in range(20))


@pytest.mark.parametrize(("sided", "says"), [(True, "tells left from right"), (None, "is not said")])
def test_a_flip_is_refused_where_sides_matter(sided: bool | None, says: str) -> None:
    with pytest.raises(VividError, match=says):
        RandomAugmentation(PLAIN, Augment(flip=0.5), sided=sided)
    RandomAugmentation(PLAIN, Augment(), sided=sided)


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"rotate": -1}, {"scale": 1}, {"translate": float("nan")}])
def test_impossible_augmentation_is_refused(wrong: dict) -> None:
    with pytest.raises(VividError, match=f"augment: {next(iter(wrong))} must be between"):
        Augment(**wrong)


def test_a_volume_is_moved_as_monai_moves_it() -> None:
    preprocess = VolumePreprocess(size=(12, 16, 20), window=(0, 2), mean=0, std=1)
    augment = Augment(rotate=25, translate=0.1, scale=0.1, brightness=0, contrast=0)
    ours = RandomAugmentation(preprocess, augment)
    volumes = torch.randint(-1, 2, (3, 1, 12, 16, 20), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    drawn = Drawn.stack([ours.draw(seed) for seed in range(3)])
    assert [tuple(part.shape) for part in drawn] == [(3,), (3, 3), (3, 3), (3, 3), (3,), (3,)]
    got = ours(volumes, drawn)
    for volume, one, seed in zip(volumes, got, range(3), strict=True):
        affine = RandAffined(
            "image",
            prob=1.0,
            rotate_range=(math.radians(25),) * 3,
            translate_range=(1.2, 1.6, 2.0),
            scale_range=(0.1,) * 3,
            mode="bilinear",
            padding_mode="zeros",
        )
        monai = Compose([affine])
        monai.set_random_state(seed=seed)
        expected = torch.as_tensor(monai({"image": preprocess.unit(volume)})["image"])
        # Coordinates are float32 here: 20 voxels to 1e-7 of them, times the slope of noise.
        torch.testing.assert_close(one, expected, atol=2e-5, rtol=0)


def test_a_volume_is_mirrored_along_left_and_right() -> None:
    volume = torch.arange(2 * 3 * 4, dtype=torch.int16).reshape(1, 1, 2, 3, 4)
    for orientation, axis in (("SPL", 4), ("LPS", 2)):
        preprocess = VolumePreprocess(size=(2, 3, 4), orientation=orientation, window=(12, 24), mean=0, std=1)
        augmentation = RandomAugmentation(preprocess, Augment(**STILL, flip=1), sided=False)
        drawn = Drawn.stack([augmentation.draw(0)])
        assert torch.equal(augmentation(volume, drawn), preprocess.unit(volume.flip(axis)))
