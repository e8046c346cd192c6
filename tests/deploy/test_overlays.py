"""Where the ViT looked."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.deploy.small import make_classifier
from tests.tolerance import float32
from vivid_monai.deploy.predict import OVERLAY_SIDE as SIDE
from vivid_monai.deploy.predict import attention_maps, save_overlay
from vivid_monai.images.preprocess import Preprocess


def reference(one, images, pool):
    """The last block's attention, from its queries and keys."""
    seen = {}
    block = one.encoder.blocks[-1]
    handle = block.norm1.register_forward_hook(lambda module, args, output: seen.update(tokens=output))
    with torch.no_grad():
        one(images)
        q, k, _ = block.attn.qkv(seen["tokens"]).unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
    handle.remove()
    rows = {"cls": weights[:, 0], "mean": weights[:, 1:].mean(1)}
    rows["cls+mean"] = (rows["cls"] + rows["mean"]) / 2
    rows = rows[pool]
    return rows[:, 1:].reshape(len(images), *one.encoder.grid).numpy()


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
def test_is_the_attention_of_the_last_block(pool):
    one, images = make_classifier(pool=pool, img_size=(32, 48)), torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        before = one(images)
    maps = attention_maps(one, images)
    assert maps.shape == (2, 4, 6)
    np.testing.assert_allclose(maps, reference(one, images, pool), rtol=0, atol=float32(depth=6))
    assert (maps.sum((1, 2)) < 1).all()
    assert maps.std() > 1e-4
    with torch.no_grad():
        assert torch.equal(one(images), before)


def test_is_what_the_groups_of_spd_read():
    one, images = make_classifier(pool="spd", img_size=(32, 48)), torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        expected = one.spd(one.encoder(images)).attention.mean(1)[:, 1:].reshape(2, 4, 6).numpy()
    np.testing.assert_array_equal(attention_maps(one, images), expected)


def test_the_picture_is_bright_where_attention_is(tmp_path):
    preprocess = Preprocess(size=32)
    image = torch.full((1, 32, 32), (0.3 - 0.5) / 0.25)
    attention = np.zeros((4, 4), np.float32)
    attention[0, 3] = 0.9
    save_overlay(image, attention, preprocess, tmp_path / "deep" / "a.png")
    with Image.open(tmp_path / "deep" / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert abs(pixels[-20:, :20] - round(0.3 * 255)).max() <= 2
    assert pixels[:40, -40:, 0].mean() > 150
