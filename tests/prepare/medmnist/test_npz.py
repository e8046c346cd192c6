"""Damaged files and files of another layout: one error that names the file and what is wrong with it."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from tests.prepare.medmnist.making import arrays, write
from vivid_monai.errors import VividError
from vivid_monai.prepare.medmnist import open_file, write_images


@pytest.fixture
def made():
    return arrays()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "organamnist.npz"


def _error(path) -> str:
    with pytest.raises(VividError) as error:
        open_file(path, 11)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


def _with_entry(path, name: str, data: bytes) -> None:
    """The file with the bytes of one entry replaced."""
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()} | {name: data}
    with zipfile.ZipFile(path, "w") as file:
        for entry, content in entries.items():
            file.writestr(entry, content)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_a_right_file(path, made, dtype):
    made |= {key: values.astype(dtype) for key, values in made.items() if key.endswith("labels")}
    file = open_file(write(path, made), 11)
    assert file.size == 28
    for split, labels in file.labels.items():
        assert labels.dtype == np.int64
        assert np.array_equal(labels, made[f"{split}_labels"][:, 0])
        assert np.array_equal(np.stack(list(file.images(split))), made[f"{split}_images"])


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"], ids=["empty", "a web page"])
def test_not_a_zip(path, content):
    path.write_bytes(content)
    assert "not a whole .npz file" in _error(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_cut_off(path, made, share):
    whole = write(path, made).read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "download it again" in _error(path)


def test_a_key_is_missing(path, made):
    del made["val_labels"]
    assert "has no 'val_labels'; it has train_images, train_labels, val_images" in _error(write(path, made))


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.zeros((12, 28, 28), np.float32), "float32 (12, 28, 28)"),
        (np.zeros((12, 28, 28), np.int8), "int8 (12, 28, 28)"),
        (np.zeros((12, 28, 28, 3), np.uint8), "uint8 (12, 28, 28, 3)"),
        (np.zeros((12, 28, 24), np.uint8), "uint8 (12, 28, 24)"),
        (np.zeros((12, 28, 28), np.uint8, order="F"), "in Fortran order"),
        (np.zeros((12, 0, 0), np.uint8), "uint8 (12, 0, 0)"),
    ],
    ids=["float", "signed", "colour", "not square", "column-major", "no pixels"],
)
def test_images_that_are_not_grey_bytes(path, made, images, told):
    message = _error(write(path, made | {"train_images": images}))
    assert "train_images" in message
    assert told in message
    assert "not grey images uint8 (N, size, size)" in message


@pytest.mark.parametrize(
    "labels",
    [np.zeros((5, 1)), np.zeros(5, np.uint8), np.zeros((5, 2), np.uint8), np.zeros((4, 1), np.uint8)],
    ids=["float", "flat", "two a row", "too few"],
)
def test_labels_that_are_not_one_class_for_each_image(path, made, labels):
    message = _error(write(path, made | {"val_labels": labels}))
    assert "val_labels" in message
    assert "not one class number for each image, integer (5, 1)" in message


@pytest.mark.parametrize("wrong", [11, 255, -1])
def test_a_label_that_is_no_class(path, made, wrong):
    labels = made["test_labels"].astype(np.int16)
    labels[3] = wrong
    message = _error(write(path, made | {"test_labels": labels}))
    assert f"test_labels cannot be used: image 3 has class {wrong}; classes are 0 to 10" in message


def test_splits_of_different_sizes(path, made):
    assert "different sizes" in _error(write(path, made | {"val_images": np.zeros((5, 64, 64), np.uint8)}))


class _Trap:
    """What runs code when it is unpickled."""

    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("key", ["train_images", "train_labels"])
def test_pickled_objects_are_refused_unopened(path, made, tmp_path, key):
    target = tmp_path / "ran"
    trap = np.empty((12, 1), dtype=object)
    trap[:] = _Trap(target)
    _error(write(path, made | {key: trap}))
    assert not target.exists()
    pickle.loads(pickle.dumps(_Trap(target))).close()  # the trap does work
    assert target.exists()


def _header(shape, version=(1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    data = bytearray(stream.getvalue())
    data[6:8] = bytes(version)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93NUMPY", b"no array", _header((5, 1), (9, 9)), _header((5, 1)), _header((5, 1))[:40]],
    ids=["empty", "magic alone", "no magic", "version 9.9", "header alone", "half a header"],
)
def test_an_array_that_is_none(path, made, data):
    _with_entry(write(path, made), "val_labels.npy", data)
    assert "val_labels cannot be used" in _error(path)


def test_an_array_that_claims_more_than_any_memory(path, made):
    _with_entry(write(path, made), "val_labels.npy", _header((1 << 55, 1)))
    assert "val_labels cannot be used" in _error(path)


def _images(size: int, n: int, more: int) -> bytes:
    return _header((n, size, size)) + bytes(n * size * size + more)


@pytest.mark.parametrize(("more", "message"), [(-1, "ends before its last image"), (1, "goes on after its last image")])
def test_pixels_too_few_or_too_many_leave_no_images(path, made, tmp_path, more, message):
    _with_entry(write(path, made), "test_images.npy", _images(28, 7, more))
    file = open_file(path, 11)
    with pytest.raises(VividError, match=message) as error:
        write_images(file, tmp_path / "images", workers=1)
    assert f"{path}: test_images" in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_pixels_of_another_checksum_leave_no_images(path, made, tmp_path):
    np.savez(path, **made)  # stored as they are, so that the archive's structure survives
    content = bytearray(path.read_bytes())
    content[content.index(made["train_images"][11].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    file = open_file(path, 11)
    with pytest.raises(VividError, match=r"not a whole \.npz file \(Bad CRC-32"):
        write_images(file, tmp_path / "images", workers=1)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
