"""Crops have the nodule in their middle, in the right orientation, in the stated millimetres, whatever the scan was."""

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from vivid_monai.errors import VividError
from vivid_monai.images.read import read_image
from vivid_monai.images.volume import AIR, read_series
from vivid_monai.prepare.lidc.source import CropRule, cut

from .making import Scan, balls

CENTRE = (1.5, -2.25, 0.0)
LEFT, BACK, UP = (9.5, -2.25, 0), (1.5, 7.75, 0), (1.5, -8.25, 5)
SCENE = balls((CENTRE, 4, 40), (LEFT, 2, 300), (BACK, 2, 900), (UP, 2, 600))
RULE = CropRule(crop_mm=30, pixel_mm=0.5, slice_mm=2.5)


def crop(tmp_path, scan=None, rule=RULE, scene=SCENE, at=CENTRE, sop=None, **options):
    scan = scan or Scan("1.2.3")
    scan.write(tmp_path / "ct", scene, **options)
    series = read_series(sorted(str(path) for path in (tmp_path / "ct").iterdir()))
    # Where the point is in pixels, by the geometry of the fixture.
    k = round((at[2] - scan.first[2]) / scan.step) if sop is None else sop
    points = scan.points(k)
    y0, x0 = np.unravel_index(np.linalg.norm(points[..., :2] - np.array(at[:2]), axis=-1).argmin(), scan.shape)
    return cut(series, scan.sop(k), float(x0), float(y0), rule)


def brightest(plane, low, high):
    """Mean index (left, back) of the values in a range."""
    return np.argwhere((plane > low) & (plane < high)).mean(axis=0)


def test_the_nodule_is_in_the_middle_and_left_is_left(tmp_path):
    image = crop(tmp_path)
    values = np.asarray(image.dataobj)
    assert (values.dtype, values.shape) == (np.int16, (60, 60, 3))
    assert brightest(values[:, :, 1], 0, 60) == pytest.approx([29.5, 29.5], abs=0.3)
    row = values[:, 24:36, 1]  # the nodule and the ball to its left
    assert brightest(row, 250, 400) == pytest.approx([29.5 + 16, 5.5], abs=0.6)
    assert brightest(values[:, :, 1], 850, 1000) == pytest.approx([29.5, 29.5 + 20], abs=0.6)


def test_the_reader_shows_it_as_a_radiologist_sees_it(tmp_path):
    path = tmp_path / "crop.nii"
    path.write_bytes(crop(tmp_path).to_bytes())
    shown = read_image(path, slice=1, window=(0, 2000))[0]
    rows, columns = np.argwhere(shown > (850 + 1000) / 2000).mean(axis=0)
    assert (rows, columns) == (pytest.approx(49.5, abs=0.6), pytest.approx(29.5, abs=0.6))  # back is below
    left = np.argwhere(shown[24:36] > 1250 / 2000).mean(axis=0)
    assert left == pytest.approx([5.5, 45.5], abs=0.6)  # the patient's left is on the right
    assert shown[29, 29] == pytest.approx((40 + 1000) / 2000, abs=0.001)


def test_the_affine_says_where_it_was_in_the_patient(tmp_path):
    image = crop(tmp_path)
    right, front, up = apply_affine(image.affine, [29.5, 29.5, 1])
    assert (-right, -front, up) == pytest.approx(CENTRE, abs=1e-4)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    assert np.allclose(nibabel.affines.voxel_sizes(image.affine), (0.5, 0.5, 2.5))


@pytest.mark.parametrize(
    "scan",
    [
        Scan("1", orientation=(-1, 0, 0, 0, -1, 0), first=(29.25, 29.25, -20)),
        Scan("1", orientation=(0, 1, 0, 1, 0, 0)),
        Scan("1", orientation=(0, -1, 0, 1, 0, 0), first=(-30, 29.25, -20)),
        Scan("1", step=-2.5, first=(-30, -30, 20)),
        Scan("1", spacing=(0.375, 0.375), shape=(160, 160)),
        Scan("1", step=1.25, n=33),
        Scan("1", step=5, n=9),
    ],
    ids=["prone", "transposed", "turned", "from above", "finer pixels", "thinner slices", "thicker slices"],
)
def test_however_it_was_scanned_the_crop_is_the_same(tmp_path, scan):
    rule = CropRule(crop_mm=30, pixel_mm=0.5, slice_mm=5)  # every one of the scans has slices there
    usual = np.asarray(crop(tmp_path, rule=rule).dataobj).astype(float)
    other = np.asarray(crop(tmp_path / "b", scan, rule=rule).dataobj).astype(float)
    assert (np.abs(usual - other).mean(axis=(0, 1)) < 8).all()  # of 1750 HU; finer pixels draw edges differently
    assert brightest(other[:, :, 1], 850, 1000) == pytest.approx([29.5, 49.5], abs=0.6)
    assert other[:, :, 2].max() > 550 > other[:, :, 0].max()  # the ball above is above


def test_the_outer_slices_lie_at_their_distance_between_the_scans_own(tmp_path):
    def ramp(points):
        return np.full(points.shape[:-1], 10.0) * points[..., 2]  # 10 HU for each mm up

    values = np.asarray(crop(tmp_path, Scan("1", step=2.0, n=21), scene=ramp, rule=CropRule(slice_mm=2.5)).dataobj)
    assert {tuple(column) for column in values[30:60, 30:60].reshape(-1, 3).tolist()} == {(-25, 0, 25)}


def test_outside_the_scan_is_air(tmp_path):
    values = np.asarray(crop(tmp_path, at=(-28.5, 0, -20.0)).dataobj)
    assert (values[:, :, 0] == AIR).all()  # below the lowest slice
    assert (values[:20, :, 1] == AIR).all()
    assert (values[30:, :, 1] > AIR).all()


def test_a_rule_for_every_pixel_size_and_none_that_cannot_be_meant(tmp_path):
    image = crop(tmp_path, rule=CropRule(crop_mm=20, pixel_mm=0.8, slice_mm=1))
    assert image.shape == (25, 25, 3)
    assert np.asarray(image.dataobj)[12, 12, 1] == 40
    for numbers in ({"crop_mm": 0}, {"pixel_mm": -1}, {"slice_mm": 0}, {"crop_mm": float("nan")}, {"crop_mm": 1e4}):
        with pytest.raises(VividError, match="crop of"):
            CropRule(**numbers)


def test_a_wide_gap_is_not_interpolated_and_a_foreign_slice_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"slices are missing: the next ones are 7\.5 mm apart"):
        crop(tmp_path, Scan("1", skip=frozenset({9, 10})))
    series = read_series([str(path) for path in (tmp_path / "ct").iterdir()])
    with pytest.raises(ValueError, match=r"no slice 9\.9"):
        cut(series, "9.9", 1, 1, RULE)


def test_a_tilted_gantry_is_sampled_where_each_slice_is(tmp_path):
    scan = Scan("1.2.3")
    shift = 0.3  # mm to the back for each mm up

    def tilt(ds, k):
        position = scan.position(k)
        ds.ImagePositionPatient = (position + np.array([0, shift * position[2], 0])).tolist()

    def scene(points):
        moved = points + np.array([0, shift, 0]) * points[..., 2:]
        return 20 * moved[..., 1]

    values = np.asarray(crop(tmp_path, scan, scene=scene, change=tilt).dataobj)[20:40, 20:40]
    assert np.abs(values - values[:, :, 1:2]).max() <= 1
