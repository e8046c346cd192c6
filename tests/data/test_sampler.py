"""The order of training: pure, resumable, shared between ranks without a gap."""

from itertools import islice

import numpy as np
import pytest

from vivid_monai.data.loader import ResumableBatchSampler
from vivid_monai.errors import VividError


def steps(count: int, *args, **options) -> list[list[tuple[int, int]]]:
    return list(islice(ResumableBatchSampler(*args, **options), count))


def test_every_epoch_holds_every_item_once() -> None:
    stream = [index for batch in steps(15, 10, 4, seed=3) for index, _ in batch]
    epochs = np.array(stream).reshape(6, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_draws_count_the_items() -> None:
    assert [draw for batch in steps(5, 10, 4, seed=3) for _, draw in batch] == list(range(20))


@pytest.mark.parametrize("start", [1, 2, 7])
def test_starting_at_a_step_equals_skipping_to_it(start: int) -> None:
    assert steps(5, 10, 4, seed=3, start=start) == steps(5 + start, 10, 4, seed=3)[start:]


def test_start_may_be_set_before_each_iteration() -> None:
    sampler = ResumableBatchSampler(10, 4, seed=3)
    whole = list(islice(sampler, 9))
    sampler.start = 6
    assert list(islice(sampler, 3)) == whole[6:]
    assert list(islice(sampler, 3)) == whole[6:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batch_exactly(world_size: int) -> None:
    whole = steps(8, 10, 4, seed=3)
    shares = [steps(8, 10, 4, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [[item for part in parts for item in part] for parts in zip(*shares, strict=True)] == whole


def test_other_seeds_give_another_order() -> None:
    assert steps(5, 100, 4, seed=3) == steps(5, 100, 4, seed=3)
    assert steps(5, 100, 4, seed=3) != steps(5, 100, 4, seed=4)


def test_a_batch_may_be_larger_than_the_dataset() -> None:
    (batch,) = steps(1, 3, 6, seed=0)
    assert sorted(index for index, _ in batch) == [0, 0, 1, 1, 2, 2]
    assert len({draw for _, draw in batch}) == 6


@pytest.mark.parametrize(
    ("n", "batch_size", "options", "says"),
    [
        (0, 4, {}, "no items"),
        (10, 0, {}, "shared evenly"),
        (10, 5, {"world_size": 2}, "5 items .* shared evenly by 2"),
        (10, 4, {"rank": 2, "world_size": 2}, "rank 2 is not one of 2"),
        (10, 4, {"start": -1}, "must not be negative"),
    ],
)
def test_impossible_settings_are_refused(n: int, batch_size: int, options: dict, says: str) -> None:
    with pytest.raises(VividError, match=says):
        ResumableBatchSampler(n, batch_size, seed=0, **options)
