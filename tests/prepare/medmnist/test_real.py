"""Real images in the official layout: a part of PneumoniaMNIST, and organs cut from a CT as OrganAMNIST's were."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from vivid_monai.data.manifest import Manifest
from vivid_monai.images.read import read_image
from vivid_monai.prepare.build import prepare
from vivid_monai.prepare.medmnist import read

pytest.importorskip("medmnist")
pytestmark = pytest.mark.real_data

ORGANS = {  # numbers of TotalSegmentator's labels; lungs are segmented by lobe
    "spleen": (1,),
    "kidney-right": (2,),
    "kidney-left": (3,),
    "liver": (5,),
    "pancreas": (7,),
    "lung-left": (10, 11),
    "lung-right": (12, 13, 14),
}
WINDOW = (50, 400)  # of the abdomen, HU
SIZE = 28


def test_the_part_of_pneumoniamnist(real_data, tmp_path):
    path = real_data / "medmnist" / "pneumoniamnist_subset.npz"
    source = read("pneumoniamnist", unofficial=path, out=tmp_path)
    manifest = Manifest.load(prepare(source, check="images").write(tmp_path))
    counts = {split: n["images"] for split, n in manifest.card["splits"].items()}
    assert counts == {"train": 2428, "val": 270, "test": 468}
    made = np.load(path)
    labels = np.concatenate([made[f"{split}_labels"] for split in ("train", "val", "test")])
    assert np.array_equal(manifest.states(), labels)
    images = manifest.table["image"].to_pylist()
    for row, key, position in ((0, "train_images", 0), (2428 + 269, "val_images", 269), (3165, "test_images", 467)):
        with Image.open(tmp_path / images[row]) as png:
            assert np.array_equal(np.asarray(png), made[key][position])


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _resized(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).resize((SIZE, SIZE)))


def _cut(real_data: Path, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Organ → its crop, and the same crop of a picture of each voxel's x in the patient (0 to 255: left to right)."""
    ct = real_data / "ct" / "example_ct_sm.nii.gz"  # the CT that the mask was made of
    segmented = nibabel.load(real_data / "ct" / "example_seg.nii.gz")
    labels = np.asanyarray(segmented.dataobj)
    i, j, k = np.indices(labels.shape)
    # mm; right is positive
    x = (np.stack([i, j, k, np.ones_like(i)], axis=-1) @ segmented.affine[0]).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(x, segmented.affine), folder / "x.nii.gz")
    crops = {}
    for organ, numbers in ORGANS.items():
        mask = np.isin(labels, numbers).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, segmented.affine), folder / "mask.nii.gz")
        widest = int(mask.sum(axis=(0, 1)).argmax())
        box = _box(read_image(folder / "mask.nii.gz", slice=widest, window=(0.5, 1))[0] > 0)
        crops[organ] = (
            _resized(read_image(ct, slice=widest, window=WINDOW)[0][box]),
            _resized(read_image(folder / "x.nii.gz", slice=widest, window=(0, 400))[0][box]),
        )
    return crops


def _classes() -> tuple[str, ...]:
    """The classes in the package's order: the position is the class number."""
    from medmnist import INFO

    label = INFO["organamnist"]["label"]
    return tuple(label[str(number)] for number in range(len(label)))


def test_organs_of_a_ct_keep_their_names_and_sides(real_data, tmp_path):
    crops = _cut(real_data, tmp_path)
    fields = _classes()
    made = {}
    for split, which in (("train", 0), ("val", 1), ("test", 0)):
        made[f"{split}_images"] = np.stack([pair[which] for pair in crops.values()])
        made[f"{split}_labels"] = np.array([[fields.index(organ)] for organ in crops], np.uint8)
    np.savez_compressed(tmp_path / "organs.npz", **made)
    source = read("organamnist", unofficial=tmp_path / "organs.npz", out=tmp_path / "out")
    manifest = Manifest.load(prepare(source, check="images").write(tmp_path / "out"))

    rows = manifest.table.to_pylist()
    organs = [manifest.fields[present] for present in manifest.states().argmax(axis=1)]
    assert organs == 3 * list(crops)
    assert np.array_equal(manifest.states().sum(axis=1), np.ones(len(rows)))
    pixels = [255 * read_image(manifest.image_root / row["image"])[0] for row in rows]
    ct = {organ: image for organ, image, row in zip(organs, pixels, rows, strict=True) if row["split"] == "train"}
    x = {organ: image for organ, image, row in zip(organs, pixels, rows, strict=True) if row["split"] == "val"}

    for organ, image in ct.items():
        assert np.array_equal(image.round(), crops[organ][0])
    black = {organ: (image < 10).mean() for organ, image in ct.items()}  # under -140 HU: only lungs hold air
    assert min(share for organ, share in black.items() if organ.startswith("lung")) > 0.1
    assert max(share for organ, share in black.items() if not organ.startswith("lung")) < 0.05
    for image in x.values():  # the patient's right lies on the image's left
        columns = image.mean(axis=0)
        assert (np.diff(columns) <= 0).all()
        assert columns[0] > columns[-1] + 10
    midline = 255 * (0 + 200) / 400
    for organ in ("kidney-left", "lung-left", "spleen"):
        assert x[organ].mean() < midline, organ
    for organ in ("kidney-right", "lung-right", "liver"):
        assert x[organ].mean() > midline, organ
