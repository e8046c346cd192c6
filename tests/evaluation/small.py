"""Small data sets on disk whose findings a linear probe can read off the pixels."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from vivid_monai.data.columns import FINDING
from vivid_monai.data.manifest import Manifest
from vivid_monai.evaluation.encoders import VividEncoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.vit import ViT
from vivid_monai.ums.label_space import load_label_space

PREPROCESS = Preprocess(size=16)


def encoder(seed: int = 0, **options) -> VividEncoder:
    """A ViT of random weights for images of 16 pixels."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vit = ViT(img_size=16, patch_size=8, preset="micro")
    return VividEncoder(vit, PREPROCESS, source=f"vit-{seed}", **options)


def data_set(
    folder: Path, *, space: str = "chexpert-12", n: int = 90, seed: int = 0, dataset: str = "made", splits=None
) -> Manifest:
    """n images of n/3 patients, written to ``folder`` with their manifest: the findings are bright spots."""
    fields = load_label_space(space).fields
    rng = np.random.default_rng(seed)
    exclusive = load_label_space(space).exclusive
    states = (
        np.eye(len(fields), dtype=int)[rng.integers(0, len(fields), n)]
        if exclusive
        else rng.random((n, len(fields))) < 0.4
    )
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(n):
        image = rng.integers(60, 100, (16, 16), dtype=np.uint8)
        for f in np.flatnonzero(states[i]):
            image[f % 4 * 4 : f % 4 * 4 + 3, f // 4 * 4 : f // 4 * 4 + 3] = 220
        Image.fromarray(image).save(folder / "images" / f"{i:03d}.png")
        row = {"id": f"{dataset}-{i:03d}", "image": f"images/{i:03d}.png", "patient_id": f"{dataset}-p{i // 3}"}
        row |= {"split": (splits or ("train", "train", "val", "test", "test"))[i // 3 % (len(splits or "12345"))]}
        row |= {"dataset": dataset, "modality": "DX", "anatomy": "chest", "labeller": "made", "source": "human"}
        rows.append(row | {FINDING + field: int(state) for field, state in zip(fields, states[i], strict=True)})
    manifest = Manifest(pa.Table.from_pylist(rows), label_space=space, image_root=folder)
    manifest.save(folder / "manifest.parquet")
    return Manifest.load(folder / "manifest.parquet")
