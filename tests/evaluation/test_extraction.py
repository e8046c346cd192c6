"""The pass over images: evaluation mode, every image once, nothing broken taken for features."""

import numpy as np
import pytest
import torch

from tests.evaluation.tiny_encoder import TinyEncoder
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.prepare.phantoms import prepare


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return Manifest.load(prepare(tmp_path_factory.mktemp("phantoms"), n=30, size=32))


def features(encoder, manifest, **options):
    return FeatureStore(None, batch_size=4, **options).features(encoder, manifest, "train", manifest.fields)


def test_rows_are_the_encoder_on_each_image(manifest):
    encoder = TinyEncoder().train()
    got = features(encoder, manifest)
    assert encoder.training, "the mode is put back"
    transform = encoder.preprocess.transform()
    for row, item in zip(got.x, manifest.select("train").items(), strict=True):
        image = transform({"image": item["image"]})["image"]
        with torch.no_grad():
            expected = image.flatten() @ encoder.weight.T
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)  # another batch size rounds otherwise
    assert got.x.dtype == np.float32
    assert got.states.dtype == np.int64


def test_the_global_random_state_is_left_alone(manifest):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    features(TinyEncoder(), manifest)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_kept_images_serve_the_next_encoder_with_the_same_preprocessing(manifest, monkeypatch):
    store = FeatureStore(None, batch_size=4, keep_images=True)
    reads = []
    from vivid_monai.images import preprocess as steps

    read = steps.ReadImaged.__call__
    monkeypatch.setattr(steps.ReadImaged, "__call__", lambda self, data: reads.append(1) or read(self, data))
    images = len(manifest.select("train"))
    for seed in (0, 1):
        encoder = TinyEncoder(seed=seed)
        kept = store.features(encoder, manifest, "train", manifest.fields)
        assert len(reads) == images, "read once"
        assert kept.x.tobytes() == features(TinyEncoder(seed=seed), manifest).x.tobytes()
        reads[images:] = []
    store.features(TinyEncoder(mean=0.4), manifest, "train", manifest.fields)
    assert len(reads) == images, "bytes do not depend on the normalisation"
    store.features(TinyEncoder(resize="crop"), manifest, "train", manifest.fields)
    assert len(reads) == 2 * images, "other preprocessing, other images"


def test_features_that_are_not_finite_are_refused(manifest):
    class Broken(TinyEncoder):
        def forward(self, images):
            x = super().forward(images)
            x[1, 2] = float("nan")
            return x

    second = manifest.select("train").table["id"][1].as_py()
    with pytest.raises(VividError, match=f"{second} are not finite"):
        features(Broken(), manifest)


def test_features_of_another_shape_are_refused(manifest):
    encoder = TinyEncoder(dim=5)
    encoder.dim = 6
    with pytest.raises(VividError, match=r"\(4, 5\) for 4 images; it promised 6"):
        features(encoder, manifest)


def test_workers_change_nothing(manifest):
    one, two = features(TinyEncoder(), manifest), features(TinyEncoder(), manifest, num_workers=1)
    assert one.x.tobytes() == two.x.tobytes()
