"""Images unlike the training ones are refused, and those like them at the rate that was promised."""

import io
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from vivid_monai.deploy import ood
from vivid_monai.deploy.ood import OODDetector, conformal_limit
from vivid_monai.errors import VividError

WIDTH = 12
MIXED = np.random.default_rng(99).normal(size=(WIDTH, WIDTH)) * np.geomspace(1e-3, 1e3, WIDTH)


def made(n: int, seed: int, each: int = 1) -> np.ndarray:
    """Correlated features with heavy tails and of very different sizes; every `each` rows are one patient's."""
    rng = np.random.default_rng(seed)
    patient = rng.standard_t(5, size=(n // each, WIDTH)).repeat(each, axis=0)
    return ((patient + 0.1 * rng.normal(size=(n, WIDTH))) @ MIXED + 5).astype(np.float32)


def patients(n: int, each: int = 1) -> np.ndarray:
    return np.arange(n) // each


def fit(n_train: int = 400, n_val: int = 100, seed: int = 0, **options) -> OODDetector:
    return OODDetector.fit(made(n_train, 3 * seed), made(n_val, 3 * seed + 1), **options)


FRESH = made(20_000, 10**6)


@pytest.mark.parametrize(
    ("n_train", "n_val", "accepted", "n_limit"),
    [(400, 1500, 0.99, 1500), (300, 60, 0.99, 360), (300, 60, 0.9, 360), (300, 100, 0.9, 100), (60, 20, 0.99, 80)],
)
def test_new_images_are_refused_at_the_promised_rate(n_train, n_val, accepted, n_limit):
    ones = [fit(n_train, n_val, seed, accepted=accepted) for seed in range(40)]
    share, low, high = ones[0].refused()
    refused = np.array([1 - one.accepts(FRESH).mean() for one in ones])
    assert ones[0].n_images == ones[0].n_patients == n_limit
    assert share == pytest.approx(max(1 - accepted, 1 / (n_limit + 1)), abs=1 / n_limit)
    assert low < share < high
    assert refused.mean() == pytest.approx(share, rel=0.3)
    assert ((refused >= low) & (refused <= high)).mean() >= 0.85


def test_the_interval_knows_that_images_of_one_patient_are_alike():
    held = []
    for seed in range(40):
        train, validation = made(600, 3 * seed, each=6), made(1200, 3 * seed + 1, each=12)
        whose = patients(600, 6), patients(1200, 12) + 1000
        one = OODDetector.fit(train, validation, accepted=0.95, patients=whose)
        assert (one.n_images, one.n_patients) == (1200, 100)
        _, low, high = one.refused()
        held.append(low <= 1 - one.accepts(FRESH).mean() <= high)
    assert np.mean(held) >= 0.85
    assert one.refused()[0] == pytest.approx(0.05, abs=1e-3)


def test_patients_are_not_cut_when_training_images_are_held_out():
    train, validation = made(400, 0, each=8), made(30, 1)
    whole = OODDetector.fit(train, validation, patients=(patients(400, 8), patients(30) + 1000))
    cut = OODDetector.fit(train, validation)
    assert (whole.n_images, whole.n_patients, cut.n_patients) == (430, 80, 430)
    assert (cut.distance(train) == whole.distance(train)).all()
    assert cut.limit < 0.9 * whole.limit  # seven images of the same patient are near


def test_the_limit_is_the_distance_that_the_share_asks_for():
    distances = np.random.default_rng(0).permutation(np.arange(1.0, 200))
    assert conformal_limit(distances, 0.95) == 190
    assert conformal_limit(distances, 0.99) == 198
    assert conformal_limit(np.arange(1.0, 51), 0.9) == 46  # 51 · 0.9 = 45.9
    assert conformal_limit(np.arange(1.0, 51), 0.99) == 50
    one = OODDetector(np.zeros(1), np.eye(1), 3.0, 0.9, 99, 99)
    assert one.refused() == pytest.approx((0.1, 0.0495, 0.1656), abs=1e-3)  # of Beta(10, 90)
    assert one.accepts(np.array([[3.0], [-3.0], [3.01], [-3.01]])).tolist() == [True, True, False, False]


def test_distance_is_mahalanobis():
    rng = np.random.default_rng(0)
    train, validation, new = (rng.normal(size=(n, 3)) @ [[1, 1, 0], [0, 3, 3], [0, 0, 9]] for n in (5000, 1000, 50))
    one = OODDetector.fit(train, validation)
    difference = new - train.mean(0)
    expected = np.sqrt(np.einsum("nd,de,ne->n", difference, np.linalg.inv(np.cov(train.T)), difference))
    assert one.distance(new) == pytest.approx(expected, rel=0.02)
    assert one.distance(train.mean(0)[None]) == pytest.approx(0, abs=1e-6)


def test_the_size_of_a_feature_does_not_matter_nor_one_that_is_constant_or_there_twice():
    train, validation, new = made(300, 0), made(1000, 1), FRESH[:200]
    plain = OODDetector.fit(train, validation)
    scaled = OODDetector.fit(1000 * train - 7, 1000 * validation - 7)
    assert scaled.distance(1000 * new - 7) == pytest.approx(plain.distance(new), rel=1e-3)
    constant = OODDetector.fit(*(np.hstack([part, np.full((len(part), 1), 3)]) for part in (train, validation)))
    assert constant.distance(np.hstack([new, np.full((200, 1), 4)])) == pytest.approx(plain.distance(new), rel=0.05)
    signs = np.tile([1.0, -1.0], 500)[:, None].repeat(3, axis=1)  # nothing to shrink: a direction of no variance stays
    thrice = OODDetector.fit(signs, signs)
    assert np.isfinite(thrice.whitening).all()
    assert thrice.accepts(np.array([[1.0, 1, 1], [-1, -1, -1], [1, 1, -1]])).tolist() == [True, True, False]


def test_of_very_many_training_images_some_are_enough(monkeypatch):
    monkeypatch.setattr(ood, "_MOST", 150)
    one = fit(3000, 60)
    assert one.n_images == one.n_patients == 210
    rows = np.linspace(0, 2999, 150).astype(int)
    assert one.location == pytest.approx(made(3000, 0)[rows].mean(0), rel=1e-3, abs=1e-3)


def test_saved_and_read_again_it_is_the_same_bit_for_bit(tmp_path):
    one = fit(accepted=0.973)
    one.save(tmp_path / "new" / "assessment.safetensors")
    other = OODDetector.load(tmp_path / "new" / "assessment.safetensors")
    for name in ("limit", "accepted", "n_images", "n_patients"):
        assert getattr(one, name) == getattr(other, name)
        assert type(getattr(one, name)) is type(getattr(other, name))
    assert one.location.tobytes() == other.location.tobytes()
    assert one.whitening.tobytes() == other.whitening.tobytes()
    assert one.distance(FRESH).tobytes() == other.distance(FRESH).tobytes()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "assessment.safetensors"
    fit().save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(ood, "save", full)
    with pytest.raises(VividError, match="no space left; the file is as it was before"):
        fit(seed=1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("train", "validation", "options", "told"),
    [
        (made(19, 0), made(100, 1), {}, "19 training patients are too few.*20 are needed"),
        (made(100, 0), made(19, 1), {}, "19 validation patients are too few"),
        (made(100, 0), made(40, 1), {"patients": (patients(100), patients(40, 8) + 999)}, "5 validation patients"),
        (made(100, 0), made(40, 1), {"patients": (patients(100), patients(40))}, "40 patients are in training and"),
        (made(100, 0), made(40, 1), {"patients": (patients(99), patients(40) + 999)}, "do not go together"),
        (made(100, 0), made(40, 1)[:, :5], {}, r"validation features must be \(N, 12\), not \(40, 5\)"),
        (made(100, 0)[0], made(40, 1), {}, "training features must be"),
        (np.zeros((100, 0)), np.zeros((40, 0)), {}, "training features must be"),
        (np.where(np.arange(100)[:, None] == 7, np.nan, 1), made(40, 1)[:, :1], {}, "training features of image 7 are"),
        (np.ones((100, 3)), np.ones((40, 3)), {}, "constant"),
        (made(100, 0), made(40, 1), {"accepted": 1.0}, "between 0.5 and 1"),
        (made(100, 0), made(40, 1), {"accepted": 0.5}, "between 0.5 and 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(train, validation, options, told):
    with pytest.raises(VividError, match=told):
        OODDetector.fit(train, validation, **options)


def test_features_of_another_network_or_not_finite_are_refused():
    one = fit()
    for ask in (one.distance, one.accepts):
        with pytest.raises(VividError, match=r"must be \(N, 12\), not \(3, 11\)"):
            ask(FRESH[:3, :11])
        with pytest.raises(VividError, match=r"not \(12,\)"):
            ask(FRESH[0])
        for value in (np.nan, np.inf):
            with pytest.raises(VividError, match="image 2 are not finite"):
                ask(np.where(np.arange(4)[:, None] == 2, value, FRESH[:4]))
    assert one.accepts(FRESH[:0]).shape == (0,)


ARRAYS = {"location": np.zeros(3), "whitening": np.eye(3)}
SETTINGS = {"version": 1, "limit": 1.0, "accepted": 0.99, "n_images": 9, "n_patients": 9}


@pytest.mark.parametrize(
    ("arrays", "settings", "written", "told"),
    [
        ({}, {}, {"vivid-vit": "{}"}, "not written by OODDetector.save"),
        ({}, {"version": 2}, {}, "has version 2"),
        ({}, {}, {"vivid-assessment": "{"}, "metadata is broken"),
        ({}, {}, {"vivid-assessment": "[]"}, "metadata is broken"),
        ({}, {}, {"vivid-assessment": "{}"}, "metadata is broken"),
        ({}, {"limit": "1"}, {}, "not those of an OOD detector"),
        ({}, {"limit": float("nan")}, {}, "not those of an OOD detector"),
        ({}, {"limit": float("inf")}, {}, "not those of an OOD detector"),
        ({}, {"accepted": 1.5}, {}, "not those of an OOD detector"),
        ({}, {"n_patients": 10}, {}, "not those of an OOD detector"),
        ({}, {"more": 1}, {}, "not those of an OOD detector"),
        ({"location": np.zeros(4)}, {}, {}, "tensors are not those"),
        ({"more": np.zeros(4)}, {}, {}, "tensors are not those"),
        ({"location": np.zeros(3, np.float32)}, {}, {}, "not finite float64"),
        ({"whitening": np.full((3, 3), np.nan)}, {}, {}, "not finite float64"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, arrays, settings, written, told):
    path = tmp_path / "assessment.safetensors"
    save_file(ARRAYS | arrays, path, written or {"vivid-assessment": json.dumps(SETTINGS | settings)})
    with pytest.raises(VividError, match=f"{path.name}: .*{told}"):
        OODDetector.load(path)
    save_file(ARRAYS, path, {"vivid-assessment": json.dumps(SETTINGS)})
    assert OODDetector.load(path).limit == 1


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return exec, ("import tests.deploy.test_ood as here; here.RUN.append(1)",)


RUN: list[int] = []


def test_a_broken_file_is_told_and_no_code_in_it_is_run(tmp_path):
    path = tmp_path / "assessment.safetensors"
    with pytest.raises(VividError, match="no such file"):
        OODDetector.load(path)
    with pytest.raises(VividError, match=r"saved as \.safetensors"):
        fit().save(tmp_path / "assessment.pt")
    fit().save(path)
    whole, zipped = path.read_bytes(), io.BytesIO()
    torch.save({"location": Code()}, zipped)
    for content in (b"", whole[:100], whole[:-1], b"\xff" * 100, pickle.dumps(Code(), protocol=2), zipped.getvalue()):
        for name in ("assessment.safetensors", "assessment.pt"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(VividError, match=name):
                OODDetector.load(tmp_path / name)
    assert not RUN
    pickle.loads(pickle.dumps(Code()))  # it would have run
    assert RUN == [1]
