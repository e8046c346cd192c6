"""Loaders: workers and ranks change nothing, unreadable images are counted, evaluation sees each item once."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import image_loader, ordered_loader
from vivid_monai.data.targets import FieldSampler, StatesTarget
from vivid_monai.errors import VividError
from vivid_monai.images.augment import RandomAugmentation
from vivid_monai.images.preprocess import Preprocess

PREPROCESS = Preprocess(size=32)


def make(folder: Path, *, n: int = 7, broken: tuple[int, ...] = (), random: bool = True) -> ImageDataset:
    rows = []
    for index in range(n):
        path = folder / f"{index}.png"
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 33)).astype(np.uint8)).save(path)
        if index in broken:
            path.write_bytes(path.read_bytes()[:60])
        rows.append({"image": str(path), "states": np.array([0, 1, -1, 2]), "id": str(index), "patient_id": "p"})
    if not random:
        return ImageDataset(rows, PREPROCESS, targets=[StatesTarget()])
    questions = FieldSampler("ABCD", n=(1, 3), rare="D")
    return ImageDataset(
        rows, PREPROCESS, augmentation=RandomAugmentation(PREPROCESS), targets=[StatesTarget(questions)]
    )


def assert_same(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in ("image", "states", "asked"))
        assert all(map(torch.equal, a.get("drawn", ()), b.get("drawn", ())))
        assert all(a[key] == b[key] for key in ("id", "patient_id", "skipped"))


def test_a_batch_has_what_the_contract_says(tmp_path: Path) -> None:
    batch = next(iter(image_loader(make(tmp_path), 4, seed=0)))
    assert (batch["image"].dtype, batch["image"].shape) == (torch.uint8, (4, 1, 32, 32))
    assert {part.dtype for part in batch["drawn"]} == {torch.float32}
    assert [tuple(part.shape) for part in batch["drawn"]] == [(4,), (4, 1), (4, 2), (4, 2), (4,), (4,)]
    assert (batch["states"].dtype, batch["states"].shape) == (torch.int64, (4, 4))
    assert (batch["asked"].dtype, batch["asked"].shape) == (torch.bool, (4, 4))
    assert len(batch["id"]) == len(batch["patient_id"]) == 4
    assert batch["skipped"] == []
    batch = next(iter(ordered_loader(make(tmp_path, random=False), 4)))
    assert (batch["image"].dtype, batch["image"].shape) == (torch.float32, (4, 1, 32, 32))
    assert "drawn" not in batch


def test_workers_change_nothing(tmp_path: Path) -> None:
    dataset = make(tmp_path, broken=(3,))
    alone = list(islice(image_loader(dataset, 4, seed=5), 5))
    assert_same(alone, list(islice(image_loader(dataset, 4, seed=5, num_workers=2), 5)))
    assert not torch.equal(alone[0]["drawn"].shift, alone[1]["drawn"].shift)


def test_a_loader_resumes_at_any_step(tmp_path: Path) -> None:
    dataset = make(tmp_path)
    whole = list(islice(image_loader(dataset, 4, seed=5), 6))
    loader = image_loader(dataset, 4, seed=5)
    for step in (4, 3):
        loader.batch_sampler.start = step
        assert_same(whole[step:], list(islice(loader, 6 - step)))


def test_ranks_together_see_the_global_batch(tmp_path: Path) -> None:
    dataset = make(tmp_path)
    whole = list(islice(image_loader(dataset, 4, seed=5), 4))
    shares = [list(islice(image_loader(dataset, 4, seed=5, rank=rank, world_size=2), 4)) for rank in (0, 1)]
    for batch, one, other in zip(whole, *shares, strict=True):
        for key in ("image", "states", "asked"):
            assert torch.equal(batch[key], torch.cat([one[key], other[key]]))
        for whole_part, *parts in zip(batch["drawn"], one["drawn"], other["drawn"], strict=True):
            assert torch.equal(whole_part, torch.cat(parts))


def test_iterating_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    dataset = make(tmp_path)
    before = torch.get_rng_state()
    _ = list(islice(image_loader(dataset, 4, seed=5), 2))
    _ = list(ordered_loader(dataset, 4, num_workers=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_training_batch_without_images_is_a_short_clear_error(tmp_path: Path, num_workers: int) -> None:
    loader = image_loader(make(tmp_path, n=3, broken=(0, 1, 2)), 2, seed=0, num_workers=num_workers)
    with pytest.raises(VividError, match=r"none of 2 images in a row can be read; the first: .*\.png") as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)


def test_skipped_images_leave_the_batch_and_are_listed(tmp_path: Path) -> None:
    dataset = make(tmp_path, broken=(2,))
    batches = list(islice(image_loader(dataset, 7, seed=0), 2))
    assert [len(batch["id"]) for batch in batches] == [6, 6]
    assert [[Path(one.path).name for one in batch["skipped"]] for batch in batches] == [["2.png"], ["2.png"]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 10])
def test_evaluation_sees_every_item_once_and_in_order(tmp_path: Path, world_size: int) -> None:
    dataset = make(tmp_path, random=False)
    loaders = [ordered_loader(dataset, 2, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [name for loader in loaders for batch in loader for name in batch["id"]] == list("0123456")
    assert len(ordered_loader(dataset, 2)) == 4


@pytest.mark.parametrize("broken", [(0, 1), (2, 3), (6,), (0, 1, 4, 5, 6)])
def test_evaluation_goes_on_past_a_batch_without_images(tmp_path: Path, broken: tuple[int, ...]) -> None:
    batches = list(ordered_loader(make(tmp_path, broken=broken, random=False), 2))
    assert [int(name) for batch in batches for name in batch["id"]] == [i for i in range(7) if i not in broken]
    listed = [int(Path(one.path).stem) for batch in batches for one in batch["skipped"]]
    assert listed == list(broken)


def test_evaluation_without_any_image_is_an_error(tmp_path: Path) -> None:
    dataset = make(tmp_path, n=3, broken=(0, 1, 2), random=False)
    with pytest.raises(VividError, match="none of 3 images"):
        list(ordered_loader(dataset, 2))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 1}, {"rank": -1}])
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(VividError, match="impossible"):
        ordered_loader(make(tmp_path), **{"batch_size": 2, **wrong})
