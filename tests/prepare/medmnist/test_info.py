"""What the package says of the files, and that its classes are ours."""

import sys
from pathlib import Path

import pytest

from vivid_monai.errors import VividError
from vivid_monai.images.augment import Augment, RandomAugmentation
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.prepare.medmnist import NAMES, SIZES, official

medmnist = pytest.importorskip("medmnist")

ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right"),
    *("liver", "lung-left", "lung-right", "pancreas", "spleen"),
)


def test_organamnist_is_the_published_one():
    known = official("organamnist")
    assert tuple(known.info["label"].values()) == ORGANS == known.space.fields == known.fields
    assert known.info["n_samples"] == {"train": 34561, "val": 6491, "test": 17778}
    assert known.file(224)[2] == "50747347e05c87dd3aaf92c49f9f3170"
    assert (known.info["python_class"], known.info["license"]) == ("OrganAMNIST", "CC BY 4.0")
    assert known.space.exclusive
    assert known.kind == {"modality": "CT", "anatomy": "abdomen", "view": "axial"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "suffix"), [(28, ""), (64, "_64"), (128, "_128"), (224, "_224")])
def test_each_size_has_the_name_the_url_and_the_md5_of_the_package(name, size, suffix):
    info = medmnist.INFO[name]
    file, url, md5 = official(name).file(size)
    assert (file, url, md5) == (f"{name}{suffix}.npz", info["url" + suffix], info["MD5" + suffix])
    assert file in url


def test_the_table_of_files_in_the_docs_is_the_packages():
    page = (Path(__file__).parents[3] / "docs" / "medmnist.md").read_text(encoding="utf-8")
    known = official("organamnist")
    for size in SIZES:
        name, url, md5 = known.file(size)
        assert f"[{name}]({url}) | {md5} |" in page


def test_sizes_are_those_of_the_package():
    info = medmnist.INFO["organamnist"]
    assert (28, *(int(key.removeprefix("MD5_")) for key in info if key.startswith("MD5_"))) == SIZES
    with pytest.raises(VividError, match="no size 32: its sizes are 28, 64, 128, 224"):
        official("organamnist").file(32)


def _changed(monkeypatch, **label):
    info = medmnist.INFO["organamnist"]
    monkeypatch.setitem(medmnist.INFO, "organamnist", {**info, "label": {**info["label"], **label}})


@pytest.mark.parametrize(
    "label", [{"4": "kidney-right", "5": "kidney-left"}, {"6": "hepar"}, {"11": "gallbladder"}], ids=str
)
def test_other_classes_or_another_order_of_the_package_is_an_error(monkeypatch, label):
    _changed(monkeypatch, **label)
    with pytest.raises(VividError, match="labels would get wrong names") as error:
        official("organamnist")
    assert all(word in str(error.value) for word in label.values())


def test_a_class_number_that_is_missing_is_an_error(monkeypatch):
    info = medmnist.INFO["organamnist"]
    fewer = {number: word for number, word in info["label"].items() if number != "3"}
    monkeypatch.setitem(medmnist.INFO, "organamnist", {**info, "label": fewer})
    with pytest.raises(VividError, match="labels would get wrong names"):
        official("organamnist")


def test_the_class_of_no_finding_is_no_field():
    known = official("pneumoniamnist")
    assert known.fields == (None, "pneumonia")
    assert known.space.fields == ("pneumonia",)


def test_a_set_without_a_label_space_names_those_with_one():
    with pytest.raises(VividError, match="'bloodmnist' has no label space here: those with one are organamnist"):
        official("bloodmnist")


def test_an_old_package_is_an_error(monkeypatch):
    old = {key: value for key, value in medmnist.INFO["organamnist"].items() if not key.endswith("_224")}
    monkeypatch.setitem(medmnist.INFO, "organamnist", old)
    with pytest.raises(VividError, match=r"knows no 'MD5_224' of 'organamnist': install medmnist>=3\.0"):
        official("organamnist")


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(VividError, match=r"pip install 'vivid-monai\[medmnist\]', or pip install --no-deps medmnist"):
        official("organamnist")


def test_a_flip_is_refused_where_left_and_right_are_classes():
    organs, chest = official("organamnist").space, official("pneumoniamnist").space
    assert organs.sided
    with pytest.raises(VividError, match="the label space tells left from right"):
        RandomAugmentation(Preprocess(size=28), Augment(flip=0.5), sided=organs.sided)
    RandomAugmentation(Preprocess(size=28), Augment(flip=0.5), sided=chest.sided)
