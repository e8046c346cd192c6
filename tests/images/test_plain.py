"""The switch that spares MONAI's metadata tracking."""

from threading import Event, Thread

import pytest
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import SpatialPad

from vivid_monai.images.preprocess import plain_tensors


def test_transforms_return_plain_tensors_inside_only() -> None:
    pad, image = SpatialPad(4), torch.ones(1, 2, 2)
    with plain_tensors():
        assert type(pad(image)) is torch.Tensor
    assert isinstance(pad(image), MetaTensor)


def test_the_switch_is_put_back_after_an_error_and_where_it_was_off() -> None:
    with pytest.raises(KeyError), plain_tensors():
        raise KeyError
    assert get_track_meta() is True
    set_track_meta(False)
    try:
        with plain_tensors(), plain_tensors():
            assert get_track_meta() is False
        assert get_track_meta() is False
    finally:
        set_track_meta(True)


def test_overlapping_threads_put_it_back_once() -> None:
    inside, leave = Event(), Event()

    def work() -> None:
        with plain_tensors():
            inside.set()
            leave.wait(5)

    thread = Thread(target=work)
    with plain_tensors():
        thread.start()
        assert inside.wait(5)
    assert get_track_meta() is False  # the other thread still works
    leave.set()
    thread.join()
    assert get_track_meta() is True
