"""Damaged files and files of another layout: one error that names the file and what is wrong with it."""

import io
import pickle
import re
import zipfile

import numpy as np
import pytest

from tests.prepare.medmnist.making import COUNTS, arrays, write
from vivid_monai.errors import VividError
from vivid_monai.prepare.medmnist import read_array, read_images, read_labels, write_images


@pytest.fixture
def made():
    return arrays()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "organamnist.npz"


def open_file(path) -> None:
    for split, n in COUNTS.items():
        read_labels(path, split, 11)
        read_images(path, split, n)


def _error(path) -> str:
    with pytest.raises(VividError) as error:
        open_file(path)
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
    write(path, made)
    for split, n in COUNTS.items():
        labels = read_labels(path, split, 11)
        assert labels.dtype == np.int64
        assert np.array_equal(labels, made[f"{split}_labels"][:, 0])
        assert np.array_equal(read_images(path, split, n, 28), made[f"{split}_images"])


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
        (np.zeros((12, 0, 0), np.uint8), "uint8 (12, 0, 0)"),
    ],
    ids=["float", "signed", "colour", "not square", "no pixels"],
)
def test_images_that_are_not_grey_bytes(path, made, images, told):
    message = _error(write(path, made | {"train_images": images}))
    assert "train_images" in message
    assert told in message
    assert "not grey images uint8 (12, size, size)" in message


@pytest.mark.parametrize(
    "labels",
    [np.zeros((5, 1)), np.zeros(5, np.uint8), np.zeros((5, 2), np.uint8)],
    ids=["float", "flat", "two a row"],
)
def test_labels_that_are_not_one_class_for_each_image(path, made, labels):
    message = _error(write(path, made | {"val_labels": labels}))
    assert "val_labels" in message
    assert "not one class number for each image, integer (N, 1)" in message


@pytest.mark.parametrize("wrong", [11, 255, -1])
def test_a_label_that_is_no_class(path, made, wrong):
    labels = made["test_labels"].astype(np.int16)
    labels[3] = wrong
    message = _error(write(path, made | {"test_labels": labels}))
    assert f"test_labels: image 3 has class {wrong}; classes are 0 to 10" in message


def write_all(path, folder, size=None) -> None:
    write_images(path, COUNTS, folder, size=size, workers=1)


@pytest.mark.parametrize(
    ("size", "wanted", "changed"),
    [(None, "(5, 28, 28)", {"val_images": np.zeros((5, 64, 64), np.uint8)}), (64, "(12, 64, 64)", {})],
    ids=["of the splits", "of the official file"],
)
def test_images_of_different_sizes_leave_nothing(path, made, tmp_path, size, wanted, changed):
    with pytest.raises(VividError, match=re.escape(f"not grey images uint8 {wanted}")):
        write_all(write(path, made | changed), tmp_path / "images", size)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_fewer_images_than_labels_leave_nothing(path, made, tmp_path):
    with pytest.raises(VividError, match=r"val_images holds uint8 \(4, 28, 28\), not grey images uint8 \(5, 28, 28\)"):
        write_all(write(path, made | {"val_images": made["val_images"][:4]}), tmp_path / "images")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


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


@pytest.mark.parametrize(("more", "message"), [(-1, "cannot be used"), (1, "goes on after its last value")])
def test_pixels_too_few_or_too_many_leave_no_images(path, made, tmp_path, more, message):
    _with_entry(write(path, made), "test_images.npy", _images(28, 7, more))
    with pytest.raises(VividError, match=message) as error:
        write_all(path, tmp_path / "images")
    assert f"{path}: test_images" in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def _flip_a_bit_of_a_pixel(path, made) -> None:
    np.savez(path, **made)  # stored as they are, so that the archive's structure survives
    content = bytearray(path.read_bytes())
    content[content.index(made["train_images"][11].tobytes()) + 5] ^= 1
    path.write_bytes(content)


def test_pixels_of_another_checksum_leave_no_images(path, made, tmp_path):
    _flip_a_bit_of_a_pixel(path, made)
    with pytest.raises(VividError, match=r"not a whole \.npz file \(Bad CRC-32"):
        write_all(path, tmp_path / "images")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert read_array(path, "val_images").shape == (5, 28, 28)
