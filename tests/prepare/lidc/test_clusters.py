"""Readings that share a pixel are one nodule, and never more than four of them."""

import numpy as np

from vivid_monai.prepare.lidc.nodules import cluster


def line(*pixels, uid="1"):
    """A region of the pixels from a to b of one row."""
    return {uid: np.arange(pixels[0], pixels[1])}


def test_readings_are_linked_by_one_shared_pixel_and_by_a_chain():
    assert cluster([line(0, 10), line(9, 20), line(20, 30), line(19, 21)]) == [[0, 1, 2, 3]]
    assert cluster([line(0, 10), line(9, 20), line(20, 30)]) == [[0, 1], [2]]


def test_touching_nodules_and_other_slices_stay_apart():
    assert cluster([line(0, 10), line(10, 20), line(0, 10, uid="2")]) == [[0], [1], [2]]


def test_a_group_above_the_limit_loses_its_weakest_links_first():
    # Two nodules of three readings each, joined by one pixel of the fourth.
    left, right = [line(0, 10), line(0, 11), line(1, 10)], [line(10, 20), line(11, 20), line(11, 21)]
    assert cluster(left + right) == [[0, 1, 2], [3, 4, 5]]
    assert cluster(left + right, limit=6) == [[0, 1, 2, 3, 4, 5]]


def test_taking_apart_stops_where_four_are_left_and_ends_always():
    five = [line(0, 10), line(0, 10), line(0, 10), line(0, 10), line(4, 14)]
    assert cluster(five) == [[0, 1, 2, 3], [4]]
    assert cluster([line(0, 10)] * 5) == [[0], [1], [2], [3], [4]]


def test_only_the_group_that_is_too_large_is_taken_apart():
    crowd = [line(0, 10)] * 4 + [line(0, 5)]
    loose = [line(100, 110), line(109, 120)]
    assert cluster(crowd + loose) == [[0, 1, 2, 3], [4], [5, 6]]


def test_no_readings_no_nodules():
    assert cluster([]) == []
