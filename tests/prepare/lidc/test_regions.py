"""Outlines as pixels: LIDC's edge map lies outside, holes are taken out."""

import numpy as np
import pytest

from vivid_monai.prepare.lidc.nodules import decode, enclosed, overlap, region, size
from vivid_monai.prepare.lidc.reads import Contour

from .making import disc, edge


def contour(pixels, *, uid="1", inclusion=True):
    return Contour(uid, 0.0, inclusion, np.array(edge(pixels)))


def pixels_of(codes):
    return set(zip(*(v.tolist() for v in decode(codes)), strict=True))


@pytest.mark.parametrize("radius", [1, 2, 3.5, 8, 20])
@pytest.mark.parametrize("centre", [(60, 40), (300, 500), (21, 22)])
def test_the_inside_of_an_edge_map_is_the_nodule_without_the_edge(radius, centre):
    nodule = disc(*centre, radius)
    assert pixels_of(enclosed(np.array(edge(nodule)))) == nodule


@pytest.mark.parametrize("points", [[(5, 6)], [(5, 6), (6, 6)], [(5, 6), (6, 6), (6, 7)]])
def test_an_outline_that_encloses_nothing_is_its_own_pixels(points):
    assert pixels_of(enclosed(np.array(points))) == set(points)


def test_a_hole_is_taken_out_whatever_the_order_and_only_on_its_slice():
    ring, hole = disc(30, 30, 8), disc(30, 30, 3)
    parts = [contour(hole, inclusion=False), contour(ring), contour(ring, uid="2")]
    for order in (parts, parts[::-1]):
        found = region(order)
        assert pixels_of(found["1"]) == ring - hole
        assert pixels_of(found["2"]) == ring
        assert size(found) == 2 * len(ring) - len(hole)
    assert region([contour(ring), contour(ring, inclusion=False)]) == {}


def test_overlap_is_intersection_over_union_of_all_slices():
    a, b = disc(30, 30, 6), disc(33, 30, 6)
    first, second = region([contour(a), contour(a, uid="2")]), region([contour(b), contour(a, uid="3")])
    assert overlap(first, second) == overlap(second, first) == len(a & b) / (4 * len(a) - len(a & b))
    assert overlap(first, first) == 1
    assert overlap(first, region([contour(a, uid="9")])) == 0
    assert overlap({}, {}) == 0
