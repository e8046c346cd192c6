"""Windows and slices of a task, in the fingerprint and in the features."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.evaluation.encoders.conftest import PREPROCESS, prepared
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import VividEncoder, for_task, load_encoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.vit import ViT

WINDOW = (-400.0, 1000.0)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five slices of noise in HU, each brighter than the one below."""
    values = np.random.default_rng(0).integers(-200, 200, (40, 40, 5)) + np.arange(5) * 200 - 900
    path = tmp_path_factory.mktemp("volume") / "ct.nii"
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    return path


def colour_encoder() -> VividEncoder:
    torch.manual_seed(0)
    vit = ViT(img_size=32, patch_size=8, preset="micro", in_channels=3)
    return VividEncoder(vit, Preprocess(size=32, channels=3, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4)))


def test_nothing_asked_is_the_encoder_itself(vit_file: str) -> None:
    encoder = load_encoder(vit_file)
    assert for_task(encoder) is encoder
    assert for_task(for_task(encoder, window=WINDOW)).preprocess.window == WINDOW


def test_a_window_is_part_of_the_preprocessing_and_the_weights_are_shared(vit_file: str, volume: Path) -> None:
    encoder = load_encoder(vit_file)
    seen = for_task(encoder, window=WINDOW)
    assert isinstance(seen, VividEncoder)
    assert encoder.preprocess == PREPROCESS
    assert seen.preprocess == replace(PREPROCESS, window=WINDOW)
    assert seen.network is encoder.network
    assert seen.describe()["preprocess"]["window"] == list(WINDOW)
    images = prepared(seen, volume, slice=2)
    assert not torch.allclose(seen(images), encoder(prepared(encoder, volume, slice=2)), atol=1e-3)


def test_one_channel_encodes_each_slice(vit_file: str, volume: Path) -> None:
    encoder = load_encoder(vit_file, pool="cls+mean")
    one, three = for_task(encoder, window=WINDOW), for_task(encoder, window=WINDOW, slices=3)
    assert three.dim == 3 * encoder.dim
    images = torch.cat([prepared(three, volume, slice=index) for index in (2, 3)])
    assert images.shape == (2, 3, 32, 32)
    for row, middle in enumerate((2, 3)):
        expected = torch.cat([one(prepared(one, volume, slice=middle + step)) for step in (-1, 0, 1)], dim=1)
        assert torch.allclose(three(images)[row], expected[0], atol=1e-6)
    described = three.describe()
    assert (described["dim"], described["preprocess"]["slices"]) == (768, 3)
    assert described["n_parameters"] == encoder.describe()["n_parameters"]


def test_three_channels_see_the_slices_as_channels(volume: Path) -> None:
    encoder = colour_encoder()
    three = for_task(encoder, window=WINDOW, slices=3)
    one = for_task(encoder, window=WINDOW)
    assert three.dim == encoder.dim
    images = prepared(three, volume, slice=2)
    expected = torch.stack([prepared(one, volume, slice=index)[0, index - 1] for index in (1, 2, 3)])[None]
    assert torch.equal(images, expected)
    assert torch.equal(three(images), encoder(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_window_and_slices_are_in_the_fingerprint(vit_file: str, channels: int) -> None:
    encoder = load_encoder(vit_file) if channels == 1 else colour_encoder()
    tasks = [
        encoder,
        for_task(encoder, window=WINDOW),
        for_task(encoder, window=(40.0, 400.0)),
        for_task(encoder, slices=3),
        for_task(encoder, window=WINDOW, slices=3),
    ]
    assert len({task.fingerprint() for task in tasks}) == len(tasks)
    assert for_task(encoder, window=WINDOW, slices=3).fingerprint() == tasks[-1].fingerprint()


def test_slices_that_cannot_be_meant(vit_file: str) -> None:
    with pytest.raises(VividError, match="slices must be 1 or 3, not 5"):
        for_task(load_encoder(vit_file), slices=5)
