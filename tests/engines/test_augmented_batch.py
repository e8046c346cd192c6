"""Batches of training: bytes in, the network's input out, as the items' draws have it."""

import numpy as np
import torch
from PIL import Image

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import collate
from vivid_monai.engines.step import AugmentedBatch
from vivid_monai.images.augment import RandomAugmentation
from vivid_monai.images.preprocess import Preprocess

PREPROCESS = Preprocess(size=32, channels=3)


def test_a_batch_is_augmented_as_its_items_were_drawn(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = {"image": str(tmp_path / "a.png"), "states": [0, -1], "id": "a", "patient_id": "p"}
    augmentation = RandomAugmentation(PREPROCESS)
    dataset = ImageDataset([row], PREPROCESS, augmentation=augmentation, seed=3)
    batch = collate([dataset[0, 0], dataset[0, 1]])
    image, (states, asked) = AugmentedBatch(augmentation)(batch, torch.device("cpu"))
    assert (image.dtype, image.shape) == (torch.float32, (2, 3, 32, 32))
    assert not torch.equal(image[0], image[1])
    for draw in (0, 1):
        seed = int(np.random.SeedSequence([3, draw]).generate_state(2)[0])
        alone = augmentation(torch.from_numpy(pixels)[None, None], augmentation.draw(seed)[None])
        torch.testing.assert_close(image[draw : draw + 1], alone)
    assert states.tolist() == [[0, -1], [0, -1]]
    assert asked.tolist() == [[True, False], [True, False]]
    assert batch["image"].dtype == torch.uint8, "the batch itself stays as it was"
