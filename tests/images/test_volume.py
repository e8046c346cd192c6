"""CT volumes: voxels land where the matrix says, values are Hounsfield units or refused, DICOM and NIfTI agree."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from tests.images.made_volume import AFFINES, SHAPE, body, save
from tests.prepare.lidc.making import Scan, balls
from vivid_monai.data.dataset import ImageDataset
from vivid_monai.errors import VividError
from vivid_monai.images.geometry import move_points, resample
from vivid_monai.images.preprocess import Preprocess, VolumePreprocess, preprocess_from_dict
from vivid_monai.images.read import ImageError
from vivid_monai.images.volume import implausible, read_labels, read_volume, volume_geometry

SETTINGS = {
    "smaller": VolumePreprocess(size=(20, 24, 28), spacing=(4.5, 4, 3)),
    "padded": VolumePreprocess(size=(40, 50, 60), spacing=(3, 2, 2.5)),
    "cut": VolumePreprocess(size=(15, 17, 18), spacing=(3, 2, 2)),
    "other orientation": VolumePreprocess(size=(24, 24, 24), spacing=(4, 4, 4), orientation="RAI"),
}


CHEST = balls(((0, 0, 0), 15, 40.0))


def stored(preprocess: VolumePreprocess, path: Path) -> torch.Tensor:
    return torch.as_tensor(preprocess.transform(stages=["stored"])({"image": path})["image"])


def centre_of(volume: torch.Tensor) -> torch.Tensor:
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in volume.shape], indexing="ij")
    return torch.stack([(axis * volume).sum() for axis in axes]) / volume.sum()


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("preprocess", SETTINGS.values(), ids=SETTINGS)
def test_a_bright_spot_lands_where_the_matrix_says(
    tmp_path: Path, preprocess: VolumePreprocess, affine: np.ndarray
) -> None:
    spot = (20.5, 15.0, 17.0)
    with_spot, without = (
        stored(preprocess, save(body(spots=spots, radius=1.7), tmp_path / name, affine))[0].double()
        for name, spots in (("a.nii", [spot]), ("b.nii", []))
    )
    says = move_points(preprocess.matrix(SHAPE, affine), torch.tensor([spot], dtype=torch.float64))[0]
    assert (centre_of(with_spot - without) - says).abs().max() < 0.1
    back = move_points(np.linalg.inv(preprocess.matrix(SHAPE, affine)), says[None])[0]
    assert (back - torch.tensor(spot, dtype=torch.float64)).abs().max() < 1e-6


def test_axes_point_where_the_orientation_says(tmp_path: Path) -> None:
    affine = AFFINES["other axes"]
    path = save(body(), tmp_path / "a.nii", affine)
    preprocess = SETTINGS["smaller"]
    grid_to_world = volume_geometry(str(path))[1] @ np.linalg.inv(preprocess.row_matrix({"image": path}))
    assert np.allclose(grid_to_world, affine @ np.linalg.inv(preprocess.matrix(SHAPE, affine)))
    assert np.sign(grid_to_world[[2, 1, 0], [0, 1, 2]]).tolist() == [1, -1, -1]  # S, P and L, in RAS
    assert np.allclose(np.linalg.norm(grid_to_world[:3, :3], axis=0), preprocess.spacing, rtol=0.05)


def test_what_lies_outside_the_scan_is_air_and_the_window_comes_after_the_cache(tmp_path: Path) -> None:
    path = save(body(), tmp_path / "a.nii")
    volume = stored(SETTINGS["padded"], path)
    assert (volume.dtype, tuple(volume.shape)) == (torch.int16, SETTINGS["padded"].stored_shape)
    assert volume[0, 0, 0, 0] == -1024
    assert volume[0, 20, 25, 30] == 0
    for window, middle in (((0, 2000), 0.5), ((-600, 1500), 0.9)):
        preprocess = VolumePreprocess(size=(40, 50, 60), spacing=(3, 2, 2.5), window=window, mean=0, std=1)
        assert preprocess.stored_dict() == SETTINGS["padded"].stored_dict()
        image = torch.as_tensor(preprocess.transform()({"image": path})["image"])
        assert tuple(image.shape) == preprocess.shape
        assert abs(float(image[0, 20, 25, 30]) - middle) < 1e-6
        assert abs(float(image[0, 0, 0, 0]) - max(0, (-1024 - window[0]) / window[1] + 0.5)) < 1e-6
        unit = torch.as_tensor(preprocess.transform(stages=["unit"])({"image": volume})["image"])
        assert torch.equal(preprocess.unit(volume), unit)


def test_a_reduction_is_antialiased(tmp_path: Path) -> None:
    values = body()
    values[::2] += 300  # stripes finer than the grid to come
    small = stored(VolumePreprocess(size=(10, 10, 10), spacing=(9, 8, 8)), save(values, tmp_path / "a.nii"))
    middle = small[0, 4:6, 4:6, 4:6].double()
    assert (middle - 150).abs().max() < 30


def test_json_keeps_everything_and_a_config_parser_makes_the_same(tmp_path: Path) -> None:
    preprocess = VolumePreprocess(size=(20, 24, 28), spacing=(4.5, 4, 3), window=(-600, 1500), mean=0.4, std=0.3)
    values = json.loads(json.dumps(preprocess.to_dict()))
    assert values["kind"] == "volume"
    again = preprocess_from_dict(values)
    assert again == preprocess
    assert hash(again) == hash(preprocess)
    config = json.loads(json.dumps(preprocess.config()))
    parser = ConfigParser({"all": {"_target_": "Compose", "transforms": config}})
    path = save(body(), tmp_path / "a.nii.gz")
    theirs = parser.get_parsed_content("all")({"image": str(path)})["image"]
    assert torch.equal(torch.as_tensor(theirs), torch.as_tensor(preprocess.transform()({"image": path})["image"]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 64},
        {"size": (64, 64)},
        {"size": (64, 64, 0)},
        {"spacing": (1, 1)},
        {"spacing": (1, 1, 0)},
        {"orientation": "SPP"},
        {"orientation": "SP"},
        {"window": (40, 0)},
        {"std": 0},
        {"mean": (0.1, 0.2)},
    ],
)
def test_values_that_cannot_be_meant_are_refused(wrong: dict) -> None:
    with pytest.raises(VividError, match=f"preprocess: {next(iter(wrong))} must be"):
        VolumePreprocess(**wrong)


WRONG = {
    "slope and intercept applied twice": (lambda hu: hu - 1024, "applied twice"),
    "never applied": (lambda hu: hu + 1024, "no air"),
    "a window applied": (lambda hu: ((hu + 1000) / 2000).clip(0, 1), "no air"),
    "unsigned": (lambda hu: np.where(hu < 0, hu + 65536, hu), "no air"),
    "not finite": (lambda hu: np.where(hu > 900, np.nan, hu), "not finite"),
    "air alone": (lambda hu: np.full_like(hu, -1000), "no soft tissue"),
}


@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_hounsfield_units_is_refused_by_name(tmp_path: Path, change, says: str) -> None:
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    values = body(spots=[(20, 15, 17)]) + noise
    path = save(change(values).astype(np.float32), tmp_path / "wrong.nii")
    with pytest.raises(ImageError, match=rf"wrong\.nii: .*{says}"):
        read_volume(path)


def test_constant_padding_below_air_is_not_an_error(tmp_path: Path) -> None:
    values = body()
    values[:8], values[-8:] = -3024, -3024
    got, _ = read_volume(save(values, tmp_path / "a.nii"))
    assert got.min() == -1024


@pytest.mark.parametrize("damage", ["missing", "text", "2-D", "empty folder", "two series", "a slice missing"])
def test_what_is_no_volume_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "ct"
    if damage == "text":
        path = tmp_path / "ct.nii"
        path.write_text("no volume")
    elif damage == "2-D":
        path = save(body()[:, :, 0], tmp_path / "ct.nii")
    elif damage == "empty folder":
        path.mkdir()
    elif damage == "two series":
        Scan("1.2.3").write(path, CHEST)
        Scan("1.2.4").write(tmp_path / "other", CHEST)
        for file in (tmp_path / "other").iterdir():
            file.rename(path / f"other-{file.name}")
    elif damage == "a slice missing":
        Scan("1.2.3", skip=frozenset({4})).write(path, CHEST)
    with pytest.raises(ImageError, match=r"/ct(\.nii)?: unreadable volume"):
        read_volume(path)


def test_a_dicom_series_is_a_volume_in_patient_coordinates(tmp_path: Path) -> None:
    scan = Scan("1.2.3")
    scan.write(tmp_path / "ct", CHEST)
    volume, affine = read_volume(tmp_path / "ct")
    spatial, same = volume_geometry(str(tmp_path / "ct"))
    assert spatial == volume.shape
    assert np.array_equal(affine, same)
    first = scan.position(0) if scan.step > 0 else scan.position(scan.n - 1)
    assert np.allclose(affine[:3, 3], np.array(first) * [-1, -1, 1])
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), [scan.spacing[1], scan.spacing[0], abs(scan.step)])


def test_a_series_of_too_many_voxels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scan("1.2.3").write(tmp_path / "ct", CHEST)
    monkeypatch.setattr("vivid_monai.images.nifti.MAX_VOXELS", 1000)
    with pytest.raises(ImageError, match="voxels, more than the 1,000 allowed"):
        read_volume(tmp_path / "ct")


def test_volumes_are_items_and_unreadable_ones_are_skipped(tmp_path: Path) -> None:
    paths = [save(body(), tmp_path / "a.nii"), save(body() + 1024, tmp_path / "b.nii")]
    rows = [{"image": str(path), "id": path.stem} for path in paths]
    preprocess = VolumePreprocess(size=(8, 8, 8), spacing=(12, 10, 10))
    plain = ImageDataset(rows, preprocess)[0]
    for cache in (True, tmp_path / "cache"):
        dataset = ImageDataset(rows, preprocess, cache=cache)
        assert torch.equal(dataset[0]["image"], plain["image"])
        assert "no air" in dataset[1].reason
        assert dataset.pixels(0).dtype == torch.int16
    assert plain.keys() == {"image", "id"}


@pytest.mark.real_data
def test_a_real_series_lies_under_its_mask(real_data: Path) -> None:
    """TotalSegmentator's mask of the series is a NIfTI file with other axes; its liver (5) must be liver."""
    series, mask = real_data / "ct/dicom_series", real_data / "ct/example_seg_dicom.nii.gz"
    preprocess = VolumePreprocess(size=(20, 128, 128), spacing=(2, 3, 3))
    volume = stored(preprocess, series)
    labels, to_image = preprocess.read_mask(str(mask), {"image": str(series)})
    matrix = preprocess.row_matrix({"image": str(series)}) @ to_image
    liver = resample(torch.from_numpy(labels)[None], matrix, preprocess.size) == 5
    values = volume[liver].double()
    assert liver.sum() > 10_000
    assert 60 < values.mean() < 120
    assert values.std() < 40
    flipped = volume.flip(2)[liver].double()
    assert flipped.std() > 100, "the mask would not fit a mirrored volume"


@pytest.mark.real_data
def test_real_scans_are_plausible_and_twice_scaled_ones_are_not(real_data: Path) -> None:
    paths = [
        real_data / "ct" / name for name in ("example_ct.nii.gz", "example_ct_sm.nii.gz", "chest_ct_cropped.nii.gz")
    ]
    for path in paths:
        values, _ = read_volume(path)
        assert implausible(values - 1024) is not None
        assert implausible(values + 1024) is not None
    for path in sorted((real_data / "msd_hippocampus/images").glob("*.nii.gz"))[:3]:
        with pytest.raises(ImageError, match="cannot be Hounsfield units"):
            read_volume(path)


def test_masks_hold_whole_numbers(tmp_path: Path) -> None:
    path = save(np.full(SHAPE, 0.5, np.float32), tmp_path / "mask.nii")
    with pytest.raises(ImageError, match=r"mask\.nii: unreadable mask: holds values other than whole numbers"):
        read_labels(path)


def test_the_size_of_an_image_must_be_known_for_its_matrix() -> None:
    with pytest.raises(VividError, match=r"a\.png: its height and width are not in its row"):
        Preprocess().row_matrix({"image": "a.png"})
