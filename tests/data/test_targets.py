"""Targets follow their image onto the network's grid, through an augmentation, and back to the original pixels."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.images.made_volume import AFFINES, SHAPE, body, save
from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import collate
from vivid_monai.data.targets import BoxesTarget, MaskTarget, ReportTarget, StatesTarget
from vivid_monai.errors import VividError
from vivid_monai.images.augment import Augment, RandomAugmentation
from vivid_monai.images.geometry import move_boxes, move_boxes_back, resample
from vivid_monai.images.preprocess import BasePreprocess, Preprocess, VolumePreprocess
from vivid_monai.images.volume import turned

STILL = {"brightness": 0, "contrast": 0}
FIELDS = ["Mass", "Nodule"]
PLANES = {
    "pad": Preprocess(size=96, mean=0, std=1),
    "crop": Preprocess(size=96, mean=0, std=1, resize="crop", resize_to=110),
    "stretch": Preprocess(size=96, mean=0, std=1, resize="stretch"),
}
VOLUMES = {
    "flipped": VolumePreprocess(size=(32, 40, 44), spacing=(3, 2, 2), mean=0, std=1),
    "other axes": VolumePreprocess(size=(40, 40, 40), spacing=(2.2, 2.5, 2.5), mean=0, std=1),
    "oblique": VolumePreprocess(size=(32, 40, 44), spacing=(3, 2, 2), mean=0, std=1, orientation="LPS"),
}
CORNERS_2D = [[(60, 70, 84, 95)], [(50, 61, 60, 79), (90, 85, 111, 96), (75, 55, 85, 65)], []]
CORNERS_3D = [[(15, 13, 10, 24, 21, 17)], [(12, 12, 11, 18, 17, 16), (22, 18, 15, 27, 24, 20)], []]


def plane_rows(folder: Path) -> list[dict]:
    """Images of three shapes, black but for their boxes; the masks are the boxes, numbered."""
    rows = []
    for number, (boxes, shape) in enumerate(zip(CORNERS_2D, [(160, 170), (180, 150), (150, 150)], strict=True)):
        pixels, mask = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        for place, (top, left, bottom, right) in enumerate(boxes):
            pixels[top:bottom, left:right], mask[top:bottom, left:right] = 255, place + 1
        for name, array in (("image", pixels), ("mask", mask)):
            Image.fromarray(array).save(folder / f"{name}{number}.png")
        rows.append(
            {
                **{name: str(folder / f"{name}{number}.png") for name in ("image", "mask")},
                **{"id": str(number), "height": shape[0], "width": shape[1]},
                "boxes": [
                    {"field": FIELDS[place % 2], "x": left, "y": top, "width": right - left, "height": bottom - top}
                    for place, (top, left, bottom, right) in enumerate(boxes)
                ],
            }
        )
    return rows


def volume_rows(folder: Path, affine: np.ndarray) -> list[dict]:
    """Volumes with bright boxes; x, y and z grow to the patient's left, back and head, whatever the file's axes."""
    rows = []
    for number, boxes in enumerate(CORNERS_3D):
        values, mask = body(), np.zeros(SHAPE, np.uint8)
        for place, box in enumerate(boxes):
            part = tuple(slice(low, high) for low, high in zip(box[:3], box[3:], strict=True))
            values[part], mask[part] = 900, place + 1
        rows.append(
            {
                "image": str(save(values, folder / f"{number}.nii", affine)),
                "mask": str(save(mask, folder / f"mask{number}.nii", affine)),
                "id": str(number),
                "boxes": [
                    {"field": FIELDS[place % 2], "x": b[0], "y": b[1], "z": b[2]}
                    | {"width": b[3] - b[0], "height": b[4] - b[1], "depth": b[5] - b[2]}
                    for place, b in enumerate(as_shown(boxes, affine))
                ],
            }
        )
    return rows


def as_shown(boxes: list, affine: np.ndarray) -> list:
    stored = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 6)
    return move_boxes(turned(SHAPE, affine, "LPS").matrix, stored).tolist()


def augmented(rows: list[dict], preprocess: BasePreprocess, augment: Augment, *, workers: int = 0) -> dict:
    augmentation = RandomAugmentation(preprocess, augment, sided=False)
    targets = [BoxesTarget(FIELDS, preprocess), MaskTarget(preprocess)]
    dataset = ImageDataset(rows, preprocess, targets=targets, augmentation=augmentation, seed=1, cache=True)
    dataset = pickle.loads(pickle.dumps(dataset))
    batch = collate([dataset[index, 7 + index] for index in range(len(rows))])
    assert [len(boxes) for boxes in batch["boxes"]] == [len(row["boxes"]) for row in rows], "boxes stay ragged"
    assert isinstance(batch["mask"], torch.Tensor)
    return augmentation.batch(batch)


def assert_boxes_come_back(batch: dict, originals: list, atol: float = 0.01) -> None:
    for matrix, boxes, original in zip(batch["matrix"], batch["boxes"], originals, strict=True):
        back = move_boxes_back(matrix, boxes.double())
        expected = torch.tensor(original, dtype=torch.float64).reshape(back.shape)
        assert len(back) == 0 or (back - expected).abs().max() < atol


def assert_image_mask_and_boxes_agree(batch: dict, inside: float, outside: float) -> None:
    """Where the augmented mask has the number of a box, the augmented image is bright and the box lies around it."""
    for image, mask, boxes in zip(batch["image"][:, 0], batch["mask"][:, 0], batch["boxes"], strict=True):
        for place, box in enumerate(boxes):
            index = torch.nonzero(mask == place + 1).double()
            assert len(index) > 10
            assert image[mask == place + 1].median() > inside
            low, high = box.double().tensor_split(2)
            # A mask is rounded to the nearest pixel twice: onto the grid, then by the augmentation.
            assert ((index.mean(0) + 0.5 - (low + high) / 2).abs() < 1).all()
            assert (index.min(0).values + 0.5 >= low - 1).all()
            assert (index.max(0).values + 0.5 <= high + 1).all()
        assert image[mask == 0].median() < outside


AUGMENTS = {"turned": Augment(**STILL), "mirrored": Augment(**STILL, flip=1)}


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
@pytest.mark.parametrize("preprocess", PLANES.values(), ids=PLANES)
def test_ragged_boxes_go_through_an_augmentation_and_back_in_2d(
    tmp_path: Path, preprocess: Preprocess, augment: Augment
) -> None:
    rows = plane_rows(tmp_path)
    batch = augmented(rows, preprocess, augment)
    assert (batch["image"].dtype, batch["mask"].dtype) == (torch.float32, torch.uint8)
    assert [fields.tolist() for fields in batch["box_fields"]] == [[0], [0, 1, 0], []]
    assert_boxes_come_back(batch, CORNERS_2D)
    assert_image_mask_and_boxes_agree(batch, inside=0.8, outside=0.1)
    back = resample(batch["mask"][1], torch.linalg.inv(batch["matrix"][1]), (180, 150))[0]
    original = torch.from_numpy(np.asarray(Image.open(rows[1]["mask"])))
    assert 2 * ((back > 0) & (back == original)).sum() / ((back > 0).sum() + (original > 0).sum()) > 0.85


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
@pytest.mark.parametrize("kind", VOLUMES)
def test_ragged_boxes_go_through_an_augmentation_and_back_in_3d(tmp_path: Path, kind: str, augment: Augment) -> None:
    batch = augmented(volume_rows(tmp_path, AFFINES[kind]), VOLUMES[kind], augment)
    assert batch["image"].shape == (3, *VOLUMES[kind].shape)
    assert batch["mask"].shape == (3, *VOLUMES[kind].shape)
    assert_boxes_come_back(batch, [as_shown(boxes, AFFINES[kind]) for boxes in CORNERS_3D])
    assert_image_mask_and_boxes_agree(batch, inside=0.8, outside=0.55)


def test_without_augmentation_an_item_has_its_targets_on_the_grid(tmp_path: Path) -> None:
    preprocess = PLANES["pad"]
    targets = [BoxesTarget(["Mass"], preprocess), MaskTarget(preprocess)]
    item = ImageDataset(plane_rows(tmp_path), preprocess, targets=targets)[1]
    assert item.keys() == {"image", "id", "boxes", "box_fields", "mask", "matrix"}
    assert item["boxes"].shape == (2, 4)
    assert np.array_equal(item["matrix"], preprocess.matrix((180, 150)))
    top, left, bottom, right = item["boxes"][0].round().int()
    assert (item["image"][0, top + 1 : bottom - 1, left + 1 : right - 1] > 0.9).all()
    assert (item["mask"][0, top + 1 : bottom - 1, left + 1 : right - 1] == 1).all()


def test_boxes_on_other_slices_are_left_out_and_a_slice_of_a_volume_is_one_voxel_deep(tmp_path: Path) -> None:
    box = {"field": "Mass", "x": 10, "y": 12, "width": 5, "height": 6, "slice": 9, "z": None, "depth": None}
    row = {"image": "a.nii", "id": "a", "height": 40, "width": 36, "slice": 9, "boxes": [box, {**box, "slice": 8}]}
    rng = np.random.default_rng(0)
    assert len(BoxesTarget(FIELDS, Preprocess(size=40))(row, rng)["boxes"]) == 1
    volume = {"image": str(save(body(), tmp_path / "b.nii")), "id": "b", "boxes": [box]}
    got = BoxesTarget(FIELDS, VOLUMES["flipped"])(volume, rng)
    back = move_boxes_back(got["matrix"], got["boxes"].double())[0]
    assert torch.allclose(back, torch.tensor([10.0, 12, 9, 15, 18, 10], dtype=torch.float64), atol=1e-3)
    with pytest.raises(VividError, match="a box of 'Mass' has neither z and depth nor a slice"):
        BoxesTarget(FIELDS, VOLUMES["flipped"])({**volume, "boxes": [{**box, "slice": None}]}, rng)


def test_what_a_row_does_not_have_is_absent(tmp_path: Path) -> None:
    rows = plane_rows(tmp_path)
    del rows[0]["mask"]
    rows[1]["report"] = "No pneumothorax."
    targets = [MaskTarget(PLANES["pad"]), ReportTarget()]
    augmentation = RandomAugmentation(PLANES["pad"])
    dataset = ImageDataset(rows, PLANES["pad"], targets=targets, augmentation=augmentation)
    batch = augmentation.batch(collate([dataset[i] for i in range(3)]))
    assert batch["report"] == [None, "No pneumothorax.", None]
    assert batch["mask"][0] is None
    assert batch["mask"][1].shape == (1, 96, 96)


def test_mirrored_images_are_refused_where_words_tell_sides(tmp_path: Path) -> None:
    rows, preprocess = plane_rows(tmp_path), PLANES["pad"]
    augmentation = RandomAugmentation(preprocess, Augment(flip=0.5), sided=False)
    with pytest.raises(VividError, match="mirrored images would need ReportTarget to swap left and right"):
        ImageDataset(rows, preprocess, targets=[ReportTarget()], augmentation=augmentation)


def test_any_function_is_a_target_and_they_share_one_generator(tmp_path: Path) -> None:
    rows = [{**row, "states": np.array([0, 1])} for row in plane_rows(tmp_path)]
    dataset = ImageDataset(
        rows, PLANES["pad"], targets=[StatesTarget(), lambda row, rng: {"twice": 2 * int(row["id"]), "n": rng.random()}]
    )
    assert dataset[1]["twice"] == 2
    assert dataset[1]["states"].tolist() == [0, 1]
    assert dataset[1, 5]["n"] == dataset[2, 5]["n"] != dataset[1, 6]["n"]


def test_a_mask_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    row = {**plane_rows(tmp_path)[0], "height": 10}
    with pytest.raises(VividError, match=r"mask0\.png: the mask is \(160, 170\), its image .*image0\.png \(10, 170\)"):
        MaskTarget(PLANES["pad"])(row, np.random.default_rng(0))
