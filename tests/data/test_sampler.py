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


A, B, C = np.arange(0, 70), np.arange(70, 95), np.arange(95, 100)
"""Three data sets of 70, 25 and 5 items."""
SHARES = [(A, 1.0), (B, 1.0), (C, 1.0)]


def drawn(n_steps: int, shares, **options) -> np.ndarray:
    return np.array([index for batch in steps(n_steps, 100, 4, seed=3, shares=shares, **options) for index, _ in batch])


def test_weights_are_shares_of_every_epoch() -> None:
    for weights, expected in (((1, 1, 1), (33, 33, 34)), ((2, 1, 1), (50, 25, 25)), ((7, 2.5, 0.5), (70, 25, 5))):
        shares = [(items, weight) for items, weight in zip((A, B, C), weights, strict=True)]
        for epoch in drawn(100, shares).reshape(4, 100):
            counts = [np.isin(epoch, items).sum() for items in (A, B, C)]
            assert sorted(counts) == sorted(expected)
            assert np.abs(counts - 100 * np.array(weights) / sum(weights)).max() < 1
    assert set(drawn(200, [(B, 1.0), (C, 3.0)])) == set(B) | set(C), "what has no share is not drawn"


def test_no_image_of_a_data_set_is_drawn_again_before_all_others() -> None:
    epochs = drawn(300, SHARES).reshape(12, 100)  # of C's five images 400 draws, of A's seventy 400 as well
    for items in (A, B, C):
        counts = np.cumsum([np.bincount(epoch, minlength=100)[items] for epoch in epochs], axis=0)
        assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()
        assert counts[-1].min() >= 5


def test_weighted_draws_are_mixed_and_other_each_epoch() -> None:
    epochs = drawn(50, SHARES).reshape(2, 100)
    assert len({tuple(epoch) for epoch in epochs}) == 2
    for items in (A, B, C):
        places = np.flatnonzero(np.isin(epochs[0], items))
        assert places.min() < 15
        assert places.max() > 84
    assert drawn(50, SHARES).tolist() == epochs.ravel().tolist()


@pytest.mark.parametrize("start", [1, 24, 25, 73])
def test_weighted_draws_go_on_at_any_step(start: int) -> None:
    whole = steps(start + 30, 100, 4, seed=3, shares=SHARES)
    assert steps(30, 100, 4, seed=3, shares=SHARES, start=start) == whole[start:]


def test_ranks_share_weighted_batches_exactly() -> None:
    whole = steps(30, 100, 4, seed=3, shares=SHARES)
    parts = [steps(30, 100, 4, seed=3, shares=SHARES, rank=rank, world_size=2) for rank in range(2)]
    assert [one + other for one, other in zip(*parts, strict=True)] == whole


def test_a_weight_without_a_draw_is_refused() -> None:
    with pytest.raises(VividError, match=r"weight of 0\.001 is less than one draw in an epoch of 100"):
        ResumableBatchSampler(100, 4, seed=0, shares=[(A, 1.0), (B, 0.001)])


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
