"""Slices are sorted by where they are, whatever the files are called; the odd ones are left out and counted."""

import numpy as np
import pytest

from vivid_monai.images.volume import AIR, SeriesError, read_series

from .making import Scan, balls, set_pixels


def series_of(tmp_path, scan, scene=None, **options):
    scan.write(tmp_path / "ct", scene or balls(), **options)
    return read_series(sorted(str(path) for path in (tmp_path / "ct").iterdir()))


@pytest.mark.parametrize("step", [2.5, -2.5])
@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 1, 0, 0)])
def test_index_0_is_the_most_inferior_slice(tmp_path, step, orientation):
    scan = Scan("1.2.3", step=step, orientation=orientation)
    series = series_of(tmp_path, scan)
    order = [scan.sop(k) for k in range(scan.n)]
    assert [one.sop_uid for one in series.slices] == (order if step > 0 else order[::-1])
    assert (series.step, series.regular, series.patient_id) == (2.5, True, "LIDC-IDRI-0001")


def test_missing_and_doubled_slices_are_irregular_but_do_not_change_the_step(tmp_path):
    assert not series_of(tmp_path, Scan("1.2.3", skip=frozenset({4}))).regular

    def at_place_of_5(ds, k):
        if k == 6:
            ds.ImagePositionPatient = Scan("1.2.3").position(5).tolist()

    series = series_of(tmp_path / "b", Scan("1.2.3"), change=at_place_of_5)
    assert (series.regular, series.step, len(series.slices)) == (False, 2.5, 17)


def test_slices_that_differ_from_most_are_left_out_and_counted(tmp_path):
    def spoil(ds, k):
        if k == 3:
            ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        if k == 4:
            set_pixels(ds, np.zeros((40, 40)))
        if k == 5:
            ds.PixelSpacing = [0.8, 0.8]
        if k == 6:
            del ds.ImagePositionPatient
        if k == 7:
            ds.SOPInstanceUID = Scan("1.2.3").sop(8)
        if k == 9:
            ds.PixelSpacing = [0.75]
        if k == 10:
            ds.ImageOrientationPatient = None

    scan = Scan("1.2.3")
    (tmp_path / "ct").mkdir()
    Scan("1.2.4", n=1, spacing=(0.75, 0.625)).write(tmp_path / "other", balls())
    damaged = (tmp_path / "other" / "1-000.dcm").read_bytes().replace(b"0.625", b"x.625")
    (tmp_path / "ct" / "x.dcm").write_bytes(damaged)
    (tmp_path / "ct" / "no.dcm").write_bytes(b"\0" * 128 + b"DICM")
    series = series_of(tmp_path, scan, change=spoil)
    assert series.left_out == {
        "another size, spacing or orientation": 3,
        "no position, orientation, spacing or size": 5,
        "the same slice again": 1,
    }
    assert len(series.slices) == 10


def test_coronal_slices_and_two_patients_are_refused(tmp_path):
    with pytest.raises(SeriesError, match="not axial"):
        series_of(tmp_path, Scan("1.2.3", orientation=(1, 0, 0, 0, 0, -1)))

    def other(ds, k):
        ds.PatientID = f"P{k % 2}"

    with pytest.raises(SeriesError, match="2 patients: P0, P1"):
        series_of(tmp_path / "b", Scan("1.2.3"), change=other)
    with pytest.raises(SeriesError, match="none of its 1 files"):
        read_series([str(tmp_path / "gone.dcm")])


def test_padding_is_air_whether_or_not_it_is_declared(tmp_path):
    def scene(points):
        values = np.full(points.shape[:2], 40.0)
        values[0, :3] = -2000, -3024, -1500
        values[0, 3] = 77
        return values

    def declare(ds, k):
        ds.PixelPaddingValue = 1077  # stored; 77 HU

    values = series_of(tmp_path, Scan("1.2.3"), scene).values(2)
    assert values[0, :5].tolist() == [AIR, AIR, AIR, 77, 40]
    assert series_of(tmp_path / "b", Scan("1.2.3"), scene, change=declare).values(2)[0, 3] == AIR
    assert values.dtype == np.float32


def test_slope_and_intercept_of_each_slice_are_used(tmp_path):
    def own(ds, k):
        hu = np.full((80, 80), 40.0)
        ds.RescaleSlope, ds.RescaleIntercept = (2, -1000 - 4 * k)
        set_pixels(ds, hu)

    series = series_of(tmp_path, Scan("1.2.3"), change=own)
    assert {float(series.values(k)[3, 3]) for k in range(17)} == {40.0}
