"""Preprocessing as config is the preprocessing of training."""

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from tests.deploy.made_dicom import dicom
from vivid_monai.deploy.bundle.configs import to_normal, to_unit
from vivid_monai.images.preprocess import Preprocess

CASES = [
    Preprocess(size=32),
    Preprocess(size=32, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bicubic"),
    Preprocess(size=32, resize="crop", resize_to=40),
    Preprocess(size=32, resize="stretch", resize_to=36, mean=0.1, std=0.7),
    Preprocess(size=32, resize="stretch", window=(900.0, 1500.0)),
]


def by_config(preprocess: Preprocess, path: str) -> torch.Tensor:
    targets = [dict(one) for one in (*to_unit(preprocess), *to_normal(preprocess))]
    for one in targets:
        one["_target_"] = one["_target_"].replace("scripts.preprocess", "vivid_monai.images.preprocess")
    parser = ConfigParser({"all": {"_target_": "Compose", "transforms": targets}})
    return parser.get_parsed_content("all")({"image": path})["image"]


@pytest.mark.parametrize("preprocess", CASES)
def test_config_equals_the_preprocessing(tmp_path, preprocess):
    rng = np.random.default_rng(0)
    paths = [dicom(tmp_path / "a.dcm")]
    if preprocess.window is None:
        for name in ("b.png", "c.jpg"):
            Image.fromarray(rng.integers(0, 255, (61, 47), dtype=np.uint8)).save(tmp_path / name)
            paths.append(str(tmp_path / name))
    for path in paths:
        ours = preprocess.transform()({"image": path})["image"]
        theirs = by_config(preprocess, path)
        assert theirs.shape == ours.shape == (preprocess.channels, 32, 32)
        assert torch.equal(torch.as_tensor(theirs), torch.as_tensor(ours)), path


def test_both_photometric_interpretations_are_one_image(tmp_path):
    one, other = (by_config(CASES[0], dicom(tmp_path / f"{i}.dcm", inverted=bool(i))) for i in range(2))
    assert one.std() > 0.2
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=0, atol=1e-6)
