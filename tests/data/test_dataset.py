"""Items: what is in them, that seed and draw decide everything, caching, unreadable images."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import get_track_meta
from PIL import Image

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.targets import FieldSampler, StatesTarget
from vivid_monai.errors import VividError
from vivid_monai.images.augment import Drawn, RandomAugmentation
from vivid_monai.images.preprocess import Preprocess, ReadImaged, ToBytesd
from vivid_monai.storage.skipped import Skipped

PREPROCESS = Preprocess(size=32)
AUGMENTATION = RandomAugmentation(PREPROCESS)
ASK_TWO = [StatesTarget(FieldSampler(["A", "B", "C", "D"], n=(2, 2), rare=["D"]))]
STATES = [StatesTarget()]


@pytest.fixture
def data(tmp_path: Path) -> list[dict]:
    rows = []
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (40 + index, 33)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        states = np.array([index % 3, -1, 1, 0], np.int64)
        rows.append(
            {"image": str(tmp_path / f"{index}.png"), "states": states, "id": f"i{index}", "patient_id": f"p{index}"}
        )
    return rows


def same(one: dict, other: dict) -> bool:
    assert one.keys() == other.keys()
    if one["id"] != other["id"] or not all(map(torch.equal, one.get("drawn", ()), other.get("drawn", ()))):
        return False
    return all(torch.equal(one[key], other[key]) for key in one.keys() - {"id", "patient_id", "drawn"})


def test_an_item_has_what_the_contract_says(data: list[dict]) -> None:
    item = ImageDataset(data, PREPROCESS, targets=STATES)[4]
    assert type(item["image"]) is torch.Tensor
    assert (item["image"].dtype, item["image"].shape) == (torch.float32, (1, 32, 32))
    assert (item["states"].dtype, item["states"].tolist()) == (torch.int64, [1, -1, 1, 0])
    assert (item["asked"].dtype, item["asked"].tolist()) == (torch.bool, [True, False, True, True])
    assert (item["id"], item["patient_id"]) == ("i4", "p4")
    assert torch.equal(item["image"], torch.as_tensor(PREPROCESS.transform()({"image": data[4]["image"]})["image"]))
    item = ImageDataset(data, PREPROCESS, augmentation=AUGMENTATION)[4]
    assert (item["image"].dtype, item["image"].shape) == (torch.uint8, (1, 32, 32))
    assert "states" not in item, "an image without targets is an item without them"
    assert isinstance(item["drawn"], Drawn)


def test_a_plain_index_draws_itself_and_iteration_ends(data: list[dict]) -> None:
    dataset = ImageDataset(data, PREPROCESS, augmentation=AUGMENTATION, targets=ASK_TWO)
    assert same(dataset[2], dataset[2, 2])
    assert same(dataset[-1], dataset[5])
    assert [item["id"] for item in dataset] == [row["id"] for row in data]
    assert [item["id"] for item in dataset[1:3]] == ["i1", "i2"]


def test_seed_and_draw_alone_decide_an_item(data: list[dict]) -> None:
    def make(seed: int) -> ImageDataset:
        return ImageDataset(data, PREPROCESS, augmentation=AUGMENTATION, targets=ASK_TWO, seed=seed)

    one, other = make(1), make(1)
    first = [one[index, 10 + index] for index in range(6)]
    again = [other[index, 10 + index] for index in reversed(range(6))][::-1]
    assert all(map(same, first, again))
    assert not torch.equal(one[0, 10]["drawn"].shift, one[0, 11]["drawn"].shift)
    assert not torch.equal(one[0, 10]["drawn"].shift, make(2)[0, 10]["drawn"].shift)
    assert len({tuple(one[0, draw]["asked"].tolist()) for draw in range(30)}) == 3
    assert all(one[0, draw]["asked"].sum() == 2 and not one[0, draw]["asked"][1] for draw in range(30))


def test_drawing_leaves_the_global_random_state_and_monais_switch_alone(data: list[dict]) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    dataset = ImageDataset(data, PREPROCESS, augmentation=AUGMENTATION, targets=ASK_TWO, cache=True)
    _ = dataset[0, 1]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert get_track_meta() is True


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_cached_items_equal_uncached_ones_bit_for_bit(
    data: list[dict], tmp_path: Path, random: bool, place: str
) -> None:
    cache = True if place == "memory" else tmp_path / "cache"
    augmentation = AUGMENTATION if random else None
    plain, cached = (
        ImageDataset(data, PREPROCESS, augmentation=augmentation, targets=ASK_TWO, cache=where)
        for where in (False, cache)
    )
    for row in data:
        Path(row["image"]).rename(row["image"] + ".away")  # from now on only the cache has the pixels
    draws = [(index, draw) for index in range(6) for draw in (index, 50 + index)] * 2
    from_cache = [cached[pair] for pair in draws]
    for row in data:
        Path(row["image"] + ".away").rename(row["image"])
    assert all(map(same, from_cache, [plain[pair] for pair in draws]))


@pytest.mark.parametrize("cache", [False, True, "folder"])
def test_an_unreadable_image_is_skipped_with_path_and_reason(
    data: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool | str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(data[2]["image"])
    path.write_bytes(path.read_bytes()[:60])
    dataset = ImageDataset(data, PREPROCESS, augmentation=AUGMENTATION, cache=cache)
    item = dataset[2]
    assert isinstance(item, Skipped)
    assert item.path == str(path)
    assert "2.png: unreadable PNG" in item.reason
    assert [isinstance(dataset[index], dict) for index in range(6)] == [True, True, False, True, True, True]


def test_where_no_image_can_be_read_a_cache_says_so(data: list[dict]) -> None:
    rows = [{**row, "image": "nowhere.png"} for row in data]
    with pytest.raises(VividError, match=r"none of 6 images can be read; the first: nowhere\.png"):
        ImageDataset(rows, PREPROCESS, cache=True)


def test_a_mistake_in_a_step_is_not_taken_for_a_bad_image(data: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ToBytesd, item: dict) -> dict:
        raise ValueError("mistake")

    monkeypatch.setattr(ToBytesd, "__call__", broken)
    with pytest.raises(RuntimeError):
        ImageDataset(data, PREPROCESS)[0]


def test_the_slice_of_a_volume_is_read(data: list[dict], tmp_path: Path) -> None:
    volume = np.stack([np.full((32, 32), value, np.float32) for value in (0, 50, 100)], -1)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii")
    rows = [{**data[0], "image": str(tmp_path / "a.nii"), "slice": index} for index in range(3)]
    dataset = ImageDataset(rows, Preprocess(size=32, mean=0, std=1, window=(50, 100)))
    assert [round(float(item["image"].mean()), 1) for item in dataset] == [0, 0.5, 1]


def test_images_are_decoded_once_for_data_sets_that_share_them(
    data: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = ReadImaged.__call__, []
    monkeypatch.setattr(ReadImaged, "__call__", lambda self, item: reads.append(item["image"]) or read(self, item))
    one = ImageDataset(data, PREPROCESS, augmentation=AUGMENTATION, cache=True)
    reads.clear()
    other = ImageDataset(data, Preprocess(size=32, channels=3, mean=0.4), cache=True)
    assert reads == []
    one[0]["image"].zero_()  # nobody can spoil what others share
    assert torch.equal(other.pixels(0), ImageDataset(data, PREPROCESS).pixels(0))
    reads.clear()
    ImageDataset(data, Preprocess(size=32, resize="crop"), cache=True)
    assert set(reads) == {row["image"] for row in data}
    reads.clear()
    Path(data[3]["image"]).touch()
    ImageDataset(data, PREPROCESS, cache=True)
    assert set(reads) == {row["image"] for row in data}


def test_other_versions_of_what_reads_images_do_not_hit(
    data: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("0.1", "0.1", "0.2"):
        monkeypatch.setattr("vivid_monai.data.dataset.versions", lambda packages, version=version: {"pillow": version})
        ImageDataset(data, PREPROCESS, cache=tmp_path / "cache")
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2
    monkeypatch.setattr("vivid_monai.data.dataset.READER", 0)
    ImageDataset(data, PREPROCESS, cache=tmp_path / "cache")
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 3


def test_what_cannot_work_is_refused_at_once(data: list[dict]) -> None:
    with pytest.raises(VividError, match="no items"):
        ImageDataset([], PREPROCESS)
    with pytest.raises(VividError, match=r"item 1 lacks \['id'\]"):
        ImageDataset([data[0], {key: value for key, value in data[1].items() if key != "id"}], PREPROCESS)
    with pytest.raises(VividError, match=r"item 1 \(i1\) has 3 states, not 4"):
        ImageDataset([data[0], {**data[1], "states": np.zeros(3, np.int64)}], PREPROCESS, targets=STATES)
    with pytest.raises(VividError, match=r"item 1 lacks \['states'\]"):
        ImageDataset([data[0], {"image": "a.png", "id": "a"}], PREPROCESS, targets=STATES)
    with pytest.raises(VividError, match="has 4 states, not 1"):
        ImageDataset(data, PREPROCESS, targets=[StatesTarget(FieldSampler(["A"], rare=[]))])
    with pytest.raises(VividError, match="seed"):
        ImageDataset(data, PREPROCESS, seed=-1)
