"""Boxes against the image, sides against each other."""

import csv

import pytest

from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.verify import boxes, image, sides

CHEXPERT, ORGANS = load_label_space("chexpert-14"), load_label_space("organamnist-11")
SIZE = {"path": "a.png", "height": 100, "width": 200}


def box(x, y, width, height, info=SIZE, **rest):
    finding = {"boxes": [{"x": x, "y": y, "width": width, "height": height, **rest}]}
    return sorted((v.code, v.pointer.rpartition("/")[2]) for v in boxes("Edema", finding, info))


@pytest.mark.parametrize("inside", [(0, 0, 200, 100), (199, 99, 1, 1), (0.5, 0.25, 10.5, 3), (0, 0, 200.0005, 100)])
def test_boxes_up_to_the_edge_are_inside(inside):
    assert box(*inside) == []


@pytest.mark.parametrize(
    ("outside", "expected"),
    [
        ((-1, 0, 5, 5), [("box-outside", "x")]),
        ((0, -0.5, 5, 5), [("box-outside", "y")]),
        ((0, 0, 201, 100), [("box-outside", "width")]),
        ((150, 50, 51, 51), [("box-outside", "height"), ("box-outside", "width")]),
        ((0, 99, 5, 1.01), [("box-outside", "height")]),
        ((5, 5, 0, 5), [("box-area", "width")]),
        ((5, 5, -2, -2), [("box-area", "height"), ("box-area", "width")]),
        ((201, 5, -2, 5), [("box-area", "width"), ("box-outside", "width")]),
        ((0, 0, 100, 200), [("box-outside", "height")]),
    ],
)
def test_boxes_outside_or_without_area_are_told_at_the_number(outside, expected):
    assert box(*outside) == expected


def test_without_the_images_size_only_the_origin_and_the_area_can_be_wrong():
    assert box(5000, 0, 5, 5, info={"path": "a.png"}) == []
    assert box(-5000, 0, 0, 5, info={"path": "a.png"}) == [("box-area", "width"), ("box-outside", "x")]


def test_slices_belong_to_the_volume_and_to_the_record():
    volume = SIZE | {"slices": 10, "slice": 4}
    assert box(0, 0, 5, 5, info=volume, slice=4) == []
    assert box(0, 0, 5, 5, info=volume) == []
    assert box(0, 0, 5, 5, info=volume, slice=5) == [("box-slice", "slice")]
    assert box(0, 0, 5, 5, info=SIZE | {"slices": 10}, slice=10) == [("box-slice", "slice")]
    assert [v.pointer for v in image({"slices": 10, "slice": 10})] == ["/image/slice"]
    assert list(image({"slices": 10, "slice": 9})) == []


def side(name, space=CHEXPERT, view="PA", **finding):
    return [v.pointer.rpartition("/")[2] for v in sides(name, {"state": "present", **finding}, space, view)]


@pytest.mark.parametrize(
    ("location", "laterality", "wrong"),
    [
        ("left lower lobe", "left", False),
        ("left lower lobe", "right", True),
        ("left lower lobe", "bilateral", True),
        ("left lower lobe", "midline", True),
        ("both lower lobes", "bilateral", False),
        ("right and left base", "right", True),
        ("lower lobe", "right", False),
        ("LEFT hilum", None, False),
    ],
)
def test_the_location_agrees_with_the_laterality(location, laterality, wrong):
    given = {"location": location} | ({"laterality": laterality} if laterality else {})
    assert side("Pleural Effusion", **given) == (["laterality"] if wrong else [])


@pytest.mark.parametrize("view", ["lateral", "LL", "RL"])
def test_a_lateral_view_shows_no_side(view):
    assert [side("Edema", view=view, laterality=word) for word in ("left", "right", "bilateral")] == [
        ["laterality"]
    ] * 3
    assert side("Cardiomegaly", view=view, laterality="midline") == []
    assert side("Edema", view=view, location="left base") == []


@pytest.mark.parametrize("view", ["PA", "AP", "frontal", "axial", None])
def test_other_views_show_sides(view):
    assert side("Edema", view=view, laterality="left") == []


def test_a_midline_structure_has_no_side():
    assert [side("Cardiomegaly", laterality=w) for w in ("left", "right", "bilateral")] == [["laterality"]] * 3
    assert side("Cardiomegaly", laterality="midline", location="apex") == []
    assert side("Cardiomegaly", location="left ventricle") == []


def test_a_field_with_a_side_keeps_it():
    assert side("kidney-left", ORGANS, laterality="left", location="left upper pole") == []
    assert side("kidney-left", ORGANS, laterality="right") == ["laterality"]
    assert side("kidney-left", ORGANS, location="right upper pole") == ["location"]
    assert side("liver", ORGANS, location="left lobe", laterality="left") == []
    assert side("Left kidney cyst", None, laterality="right") == ["laterality"], "without a label space, by its name"


@pytest.mark.real_data
def test_the_boxes_of_nih_are_inside(real_data):
    with (real_data / "nih" / "BBox_List_2017.csv").open(newline="", encoding="utf-8") as file:
        rows = [[float(row[key]) for key in ("x", "y", "w", "h")] for row in csv.DictReader(file)]
    assert len(rows) > 20
    assert [box(*row, info={"height": 1024, "width": 1024}) for row in rows] == [[]] * len(rows)
