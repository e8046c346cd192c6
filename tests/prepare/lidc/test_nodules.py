"""Known geometry gives exact centres, sizes and slices; readers count once."""

import numpy as np
import pytest

from vivid_monai.images.volume import read_series
from vivid_monai.prepare.lidc.nodules import nodules_of
from vivid_monai.prepare.lidc.reads import read_xml

from .making import Mark, Scan, balls, disc, roi, write_xml

SCAN = Scan("1.2.3", spacing=(0.5, 0.5), step=2.0, n=11)
RADII = {4: 3, 5: 6, 6: 8, 7: 2}  # the largest is neither the first nor the middle of the outlines


def nodule(name="a", *, at=(30, 40), radii=RADII, malignancy=3, scan=SCAN):
    return Mark(name, [roi(scan, k, disc(*at, r)) for k, r in radii.items()], malignancy)


def found(tmp_path, *sessions):
    return nodules_of(read_xml(write_xml(tmp_path / "a.xml", SCAN.uid, sessions)))


def test_centre_slice_and_size_in_pixels_are_exact(tmp_path):
    (one,) = found(tmp_path, [nodule()])
    areas = {k: len(disc(30, 40, r)) for k, r in RADII.items()}
    z = sum(SCAN.position(k)[2] * area for k, area in areas.items()) / sum(areas.values())
    assert (one.x, one.y, one.sop_uid, one.area_px) == (30, 40, SCAN.sop(6), areas[6])
    assert one.z_mm == pytest.approx(z)
    assert one.voxels == sum(areas.values())
    assert (one.patient_id, one.x_mm, one.slice_index, one.diameter_mm) == (None, None, None, None)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, 1, 0, -1, 0, 0)])
def test_with_its_series_it_is_measured_in_mm(tmp_path, orientation):
    scan = Scan(SCAN.uid, spacing=(0.5, 0.5), step=2.0, n=11, orientation=orientation)
    scan.write(tmp_path / "ct", balls())
    series = read_series([str(path) for path in (tmp_path / "ct").iterdir()])
    (one,) = (nodule.measured(series) for nodule in found(tmp_path, [nodule()]))
    assert (one.patient_id, one.slice_index) == ("LIDC-IDRI-0001", 6)
    assert np.allclose((one.x_mm, one.y_mm), scan.points(6)[40, 30, :2])
    assert one.z == pytest.approx((one.z_mm - scan.first[2]) / 2)
    assert one.volume_mm3 == pytest.approx(one.voxels * 0.5 * 0.5 * 2)
    assert np.pi / 6 * one.diameter_mm**3 == pytest.approx(one.volume_mm3)


def test_a_ball_has_its_diameter(tmp_path):
    radii = {k: np.sqrt(12**2 - (4 * (k - 5)) ** 2) for k in range(3, 8)}  # 6 mm in pixels of 0.5, slices of 2 mm
    SCAN.write(tmp_path / "ct", balls())
    series = read_series([str(path) for path in (tmp_path / "ct").iterdir()])
    (one,) = (n.measured(series) for n in found(tmp_path, [nodule(radii=radii)]))
    assert one.diameter_mm == pytest.approx(12, rel=0.03)
    assert (one.slice_index, one.z_mm) == (5, pytest.approx(-10))


def test_readings_of_four_readers_are_averaged(tmp_path):
    sessions = [[nodule(str(i), at=(30 + i, 40), malignancy=m)] for i, m in enumerate((1, 2, 5, 5))]
    (one,) = found(tmp_path, *sessions)
    assert (one.n_readers, one.readings) == (4, ("1/0", "2/1", "3/2", "4/3"))
    assert one.ratings["malignancy"] == (1, 2, 5, 5)
    assert (one.average("malignancy"), one.average("malignancy", "median"), one.x) == (3.25, 3.5, 31.5)


def test_a_reader_who_marks_a_nodule_twice_counts_once(tmp_path):
    twice = [nodule("a", at=(28, 40), malignancy=1), nodule("b", at=(45, 40), malignancy=2)]
    (one,) = found(tmp_path, twice, [nodule("c", at=(36, 40), malignancy=5)])
    assert (len(one.readings), one.n_readers) == (3, 2)
    assert one.by_reader("malignancy") == [1.5, 5]
    assert one.average("malignancy") == 3.25


def test_one_slice_one_reader_is_a_nodule_and_an_empty_rating_has_no_say(tmp_path):
    small = nodule("a", radii={2: 1})
    silent = Mark("b", small.rois, 3, {"malignancy": ""})
    (one,) = found(tmp_path, [small], [silent])
    assert (one.sop_uid, one.voxels, one.n_readers, one.by_reader("malignancy")) == (SCAN.sop(2), 5, 2, [3])
    (mute,) = found(tmp_path, [silent])
    assert mute.average("malignancy") is None


def test_nodules_are_numbered_from_below_whoever_drew_first(tmp_path):
    low, high = nodule("low", radii={2: 4}), nodule("high", radii={8: 4})
    beside = nodule("beside", at=(60, 10), radii={2: 4})
    numbers = {}
    for sessions in ([[low, high, beside]], [[high], [beside], [low]]):
        numbers[str(sessions)] = [(n.number, n.readings[0].split("/")[1]) for n in found(tmp_path, *sessions)]
    assert set(map(tuple, numbers.values())) == {((1, "beside"), (2, "low"), (3, "high"))}


def test_of_equal_slices_the_one_nearest_the_centre_is_taken(tmp_path):
    (one,) = found(tmp_path, [nodule(radii={3: 5, 4: 5, 5: 5})])
    assert one.sop_uid == SCAN.sop(4)
    (far,) = found(tmp_path, [nodule(radii={2: 5, 3: 5, 4: 5, 5: 5, 6: 5, 7: 7})])
    assert far.sop_uid == SCAN.sop(7)  # larger wins, wherever it is
    (two,) = found(tmp_path, [nodule(radii={3: 5, 4: 5})])
    assert two.sop_uid == SCAN.sop(3)
