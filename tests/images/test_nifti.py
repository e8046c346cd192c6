"""NIfTI slices: orientation, scaling, what is refused."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from pydicom import dcmread

from vivid_monai.images import nifti
from vivid_monai.images.read import ImageError, read_image

SHAPE = (6, 5, 4)  # right→left, anterior→posterior, inferior→superior in the marked volume
WINDOW = (0.5, 1.0)


def save(volume: np.ndarray, path: Path, codes: str = "LPS") -> Path:
    """Store a volume given in LPS order so that its axes run along `codes`."""
    lps = nibabel.Nifti1Image(volume, np.diag([-1.0, -1.0, 1.0, 1.0]))
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(codes))
    turned = lps.as_reoriented(turn)
    assert "".join(nibabel.aff2axcodes(turned.affine)) == codes
    nibabel.save(turned, path)
    return path


def marked() -> np.ndarray:
    """One bright voxel: leftmost, second from the front, third from below."""
    volume = np.zeros(SHAPE, np.float32)
    volume[5, 1, 2] = 1
    return volume


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LAS", "SPL", "AIR", "PSR"])
def test_every_storage_order_gives_the_radiological_view(tmp_path: Path, codes: str) -> None:
    path = save(marked(), tmp_path / "a.nii.gz", codes)
    image = read_image(path, slice=2, window=WINDOW)
    assert image.shape == (1, 5, 6)
    # Front of the body at the top, the patient's left at the right of the image.
    assert np.argwhere(image[0]).tolist() == [[1, 5]]
    assert not read_image(path, slice=1, window=WINDOW).any()


def test_without_orientation_in_the_header_method_1_holds(tmp_path: Path) -> None:
    volume = nibabel.Nifti1Image(marked(), None)
    volume.header["qform_code"] = volume.header["sform_code"] = 0
    nibabel.save(volume, tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii", slice=2, window=WINDOW)
    assert np.argwhere(image[0]).tolist() == [[3, 5]]  # axes run left, anterior, superior: rows are turned round


def test_a_window_is_in_the_unit_of_the_scaled_values(tmp_path: Path) -> None:
    stored = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(SHAPE), np.diag([-1.0, -1.0, 1.0, 1.0]))
    stored.header.set_slope_inter(10, -1024)
    nibabel.save(stored, tmp_path / "a.nii")
    units = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)[:, :, 3].T
    image = read_image(tmp_path / "a.nii", slice=3, window=(-500, 400))
    assert units.min() < -700
    assert units.max() > -300
    assert np.allclose(image[0], np.clip((units + 700) / 400, 0, 1), atol=1e-6)


def test_without_a_window_the_range_of_the_whole_volume_is_scaled(tmp_path: Path) -> None:
    volume = np.zeros(SHAPE, np.float32)
    volume[0, 0, 0], volume[0, 0, 1] = 200, 100
    path = save(volume, tmp_path / "a.nii")
    assert read_image(path, slice=1).max() == 0.5


def test_a_volume_needs_a_slice_that_it_has(tmp_path: Path) -> None:
    path = save(marked(), tmp_path / "a.nii")
    with pytest.raises(ImageError, match=r"a\.nii: .*volume of 4 axial slices; say which one"):
        read_image(path)
    for index in (-1, 4):
        with pytest.raises(ImageError, match=f"no slice {index}; its 4 axial slices count from 0 to 3"):
            read_image(path, slice=index)


@pytest.mark.parametrize("codes", ["LPS", "LAI", "SPL", "AIR"])
@pytest.mark.parametrize(("index", "levels"), [(0, [0, 0, 1]), (2, [1, 2, 3]), (3, [2, 3, 3])])
def test_neighbours_come_from_below_upwards_and_end_with_the_volume(
    tmp_path: Path, codes: str, index: int, levels: list[int]
) -> None:
    volume = np.random.default_rng(0).random(SHAPE, np.float32) / 10
    volume += np.arange(4) / 5
    path = save(volume, tmp_path / "a.nii", codes)
    three = read_image(path, slice=index, slices=3, window=WINDOW)
    assert three.shape == (3, 5, 6)
    for found, level in zip(three, levels, strict=True):
        assert np.array_equal(found, read_image(path, slice=level, window=WINDOW)[0])


def test_the_only_slice_has_no_neighbours(tmp_path: Path) -> None:
    path = save(marked()[:, :, 2:3], tmp_path / "a.nii")
    with pytest.raises(ImageError, match=r"a\.nii: .*has 1 axial slices; 3 neighbouring ones"):
        read_image(path, slices=3)


def test_a_single_slice_needs_no_index(tmp_path: Path) -> None:
    path = save(marked()[:, :, 2:3], tmp_path / "a.nii")
    assert np.argwhere(read_image(path)[0]).tolist() == [[1, 5]]
    flat = nibabel.Nifti1Image(marked()[:, :, 2], np.diag([-1.0, -1.0, 1.0, 1.0]))
    nibabel.save(flat, tmp_path / "b.nii")
    assert np.argwhere(read_image(tmp_path / "b.nii")[0]).tolist() == [[1, 5]]


@pytest.mark.parametrize(
    ("volume", "says"),
    [
        (np.zeros((4, 5, 3, 2), np.float32), "one volume"),
        (np.zeros((4, 5, 3), np.complex64), "not grey"),
        (np.full((4, 5, 3), 7, np.float32), "every voxel is 7"),
        (np.zeros((4, 1, 3), np.float32), "no axial slices"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, volume: np.ndarray, says: str) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ImageError, match=says):
        read_image(tmp_path / "a.nii", slice=1)


def test_too_many_voxels_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(np.random.default_rng(0).random(SHAPE, np.float32), tmp_path / "a.nii.gz")
    monkeypatch.setattr(nifti, "MAX_VOXELS", np.prod(SHAPE) - 1)
    monkeypatch.setattr("nibabel.arrayproxy.ArrayProxy.__getitem__", None)
    with pytest.raises(ImageError, match=f"has {np.prod(SHAPE):,} voxels, more than"):
        read_image(path, slice=3)


def test_a_truncated_volume_is_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        path = save(np.random.default_rng(0).random(SHAPE, np.float32), tmp_path / name)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ImageError, match="unreadable NIfTI"):
            read_image(path, slice=3)


@pytest.mark.real_data
def test_real_slices_lie_on_the_dicom_slices_they_were_drawn_on(real_data: Path) -> None:
    labels_path = real_data / "ct/example_seg_dicom.nii.gz"  # organs of the DICOM series, stored in axes L, A, S
    folder = real_data / "ct/dicom_series"
    scan = sorted(folder.iterdir(), key=lambda p: float(dcmread(p, stop_before_pixels=True).ImagePositionPatient[2]))

    labels = np.rint(read_image(labels_path, slice=0, window=(58.5, 117))[0] * 117).astype(int)
    hounsfield = read_image(scan[0], window=(40, 2000))[0]

    def unexplained(labels: np.ndarray) -> float:
        """Share of the grey values' variance that is left within the organs: small where the organs fit."""
        inside = labels > 0
        organs = [hounsfield[labels == label] for label in np.unique(labels[inside])]
        return float(sum(organ.var() * organ.size for organ in organs) / hounsfield[inside].var() / inside.sum())

    assert labels.shape == hounsfield.shape == (512, 512)
    assert unexplained(labels) < 0.8 * min(unexplained(labels[:, ::-1]), unexplained(labels[::-1]))
    liver_columns, spleen_columns = np.nonzero(labels == 5)[1], np.nonzero(labels == 1)[1]
    assert liver_columns.mean() < 256 < spleen_columns.mean()


@pytest.mark.real_data
def test_a_real_volume_is_windowed_in_hounsfield_units(real_data: Path) -> None:
    path = real_data / "ct/chest_ct_cropped.nii.gz"  # axes L, P, S
    image = read_image(path, slice=80, window=(40, 400))
    hounsfield = np.asarray(nibabel.load(path).dataobj)[:, :, 80].T
    assert image.shape == (1, 126, 120)
    assert np.allclose(image[0], np.clip((hounsfield + 160) / 400, 0, 1), atol=1e-6)


@pytest.mark.parametrize("shape", [SHAPE, (6, 5), (6, 5, 4, 1)])
def test_the_range_is_that_of_all_parts(
    tmp_path: Path, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)[::-1, ::-1]
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "a.nii.gz")
    expected = read_image(tmp_path / "a.nii.gz", slice=0)
    monkeypatch.setattr(nifti, "_PART", 1)
    assert np.array_equal(read_image(tmp_path / "a.nii.gz", slice=0), expected)
    assert expected.min() == 0
    values[0, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ImageError, match=r"not finite"):
        read_image(tmp_path / "a.nii.gz", slice=0)
