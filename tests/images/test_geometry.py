"""Matrices say where the transforms really put a pixel; points, boxes and masks follow them there and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from vivid_monai.errors import VividError
from vivid_monai.images.geometry import (
    centring,
    mirroring,
    move_boxes,
    move_boxes_back,
    move_points,
    resample,
    resizing,
)
from vivid_monai.images.preprocess import Preprocess, preprocess_from_dict

KINDS = {
    "pad": Preprocess(size=48, mean=0, std=1),
    "crop": Preprocess(size=48, mean=0, std=1, resize="crop"),
    "crop of more": Preprocess(size=47, mean=0, std=1, resize="crop", resize_to=60),
    "stretch": Preprocess(size=48, mean=0, std=1, resize="stretch"),
    "stretch and cut": Preprocess(size=41, mean=0, std=1, resize="stretch", resize_to=60, interpolation="bicubic"),
}
SPATIAL = [(200, 131), (131, 200), (48, 48), (30, 21)]


def spot(path: Path, spatial: tuple[int, int], centre: tuple[float, float], radius: float) -> Path:
    """A smooth bright spot on black, so that its centre of mass is its centre."""
    rows, columns = np.ogrid[: spatial[0], : spatial[1]]
    square = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
    Image.fromarray((255 * np.exp(-square / (2 * radius**2))).round().astype(np.uint8)).save(path)
    return path


def centre_of(image: torch.Tensor) -> torch.Tensor:
    """Index of the centre of mass of (*spatial)."""
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in image.shape], indexing="ij")
    return torch.stack([(axis * image).sum() for axis in axes]) / image.sum()


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("preprocess", KINDS.values(), ids=KINDS)
def test_a_bright_spot_lands_where_the_matrix_says(
    tmp_path: Path, preprocess: Preprocess, spatial: tuple[int, int]
) -> None:
    for part in ((0.5, 0.5), (0.44, 0.61)):
        centre = (spatial[0] * part[0], spatial[1] * part[1])
        path = spot(tmp_path / "a.png", spatial, centre, radius=max(spatial) / 25)
        image = torch.as_tensor(preprocess.transform()({"image": path})["image"])[0].double()
        says = move_points(preprocess.matrix(spatial), torch.tensor([centre], dtype=torch.float64))[0]
        assert (centre_of(image.clamp(min=0.02) - 0.02) - says).abs().max() < 0.1


@pytest.mark.parametrize("preprocess", KINDS.values(), ids=KINDS)
def test_boxes_and_masks_come_back_to_the_original(preprocess: Preprocess) -> None:
    matrix = preprocess.matrix((200, 131))
    boxes = torch.tensor([[20.0, 30, 77, 51], [0, 0, 200, 131]])
    there = move_boxes(matrix, boxes)
    assert (there[0] - boxes[0]).abs().max() > 1
    for back in (move_boxes(np.linalg.inv(matrix), there), move_boxes_back(matrix, there)):
        assert (back - boxes).abs().max() < 1e-3
    mask = torch.zeros(1, 200, 131, dtype=torch.uint8)
    mask[:, 80:120, 45:90] = 7
    small = resample(mask, matrix, (preprocess.size, preprocess.size))
    again = resample(small, np.linalg.inv(matrix), (200, 131))
    assert small.dtype == torch.uint8
    assert set(small.unique().tolist()) == {0, 7}
    overlap = 2 * ((mask > 0) & (again > 0)).sum() / ((mask > 0).sum() + (again > 0).sum())
    assert overlap > 0.9


def test_the_whole_image_is_a_box_from_zero_to_its_shape() -> None:
    whole = torch.tensor([[0.0, 0, 200, 131]])
    assert torch.equal(move_boxes(resizing((200, 131), (50, 262)), whole), torch.tensor([[0.0, 0, 50, 262]]))
    assert torch.equal(move_boxes(centring((200, 131), (206, 129)), whole), torch.tensor([[3.0, -1, 203, 130]]))
    assert torch.equal(move_boxes(mirroring((200, 131), 1), whole), whole)


def test_turned_boxes_grow_and_come_back_as_they_were() -> None:
    angle = np.radians(10)
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    boxes = torch.tensor([[20.0, 30, 77, 51], [1, 1, 2, 40]])
    there = move_boxes(turn, boxes)
    assert ((there[:, 2:] - there[:, :2]).prod(1) > (boxes[:, 2:] - boxes[:, :2]).prod(1)).all()
    assert (move_boxes_back(turn, there) - boxes).abs().max() < 1e-3
    assert move_boxes(turn, boxes[:0]).shape == move_boxes_back(turn, boxes[:0]).shape == (0, 4)
    even = np.eye(3)
    even[:2, :2] = [[1, -1], [1, 1]]
    with pytest.raises(VividError, match="mixes its axes evenly"):
        move_boxes_back(even, boxes)


@pytest.mark.parametrize("preprocess", [*KINDS.values(), Preprocess(size=32, channels=3, mean=(0.1, 0.2, 0.3))])
def test_a_config_parser_makes_the_same_transforms(tmp_path: Path, preprocess: Preprocess) -> None:
    path = spot(tmp_path / "a.png", (60, 41), (20, 20), 9)
    config = json.loads(json.dumps(preprocess.config()))
    parser = ConfigParser({"all": {"_target_": "Compose", "transforms": config}})
    theirs = parser.get_parsed_content("all")({"image": path})["image"]
    ours = torch.as_tensor(preprocess.transform()({"image": path})["image"])
    assert ours.shape == preprocess.shape
    assert torch.equal(torch.as_tensor(theirs), ours)
    stored = torch.as_tensor(preprocess.transform(stages=["stored"])({"image": path})["image"])
    assert tuple(stored.shape) == preprocess.stored_shape
    assert torch.as_tensor(stored).numpy().dtype == preprocess.stored_dtype
    unit = preprocess.transform(stages=["unit"])({"image": stored})["image"]
    assert torch.equal(torch.as_tensor(unit), preprocess.unit(stored))


def test_the_kind_is_told_by_the_dict() -> None:
    values = Preprocess(size=40).to_dict()
    assert "kind" not in values
    assert preprocess_from_dict(values) == preprocess_from_dict({**values, "kind": "image"}) == Preprocess(size=40)
    with pytest.raises(VividError, match=r"kind must be image.*, not 'film'"):
        preprocess_from_dict({**values, "kind": "film"})
