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
from vivid_monai.deploy.ood_score import WithOODScore
from vivid_monai.errors import VividError

WIDTH = 12
SETTINGS = {"version": 1, "limit": 1.0, "accepted": 0.99, "n_images": 9, "n_patients": 9}
MIXED = np.random.default_rng(99).normal(size=(WIDTH, WIDTH)) * np.geomspace(1e-3, 1e3, WIDTH)


def made(n: int, seed: int, each: int = 1) -> np.ndarray:
    """Correlated features with heavy tails and of very different sizes; every `each` rows are one patient's."""
    rng = np.random.default_rng(seed)
    patient = rng.standard_t(5, size=(n // each, WIDTH)).repeat(each, axis=0)
    return ((patient + 0.1 * rng.normal(size=(n, WIDTH))) @ MIXED + 5).astype(np.float32)


def patients(n: int, each: int = 1) -> np.ndarray:
    return np.arange(n) // each


def apart(train: np.ndarray, validation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every image is another patient's."""
    return np.arange(len(train)), -1 - np.arange(len(validation))


def fitted(train: np.ndarray, validation: np.ndarray, **options) -> OODDetector:
    return OODDetector.fit(train, validation, **{"patients": apart(train, validation), **options})


def fit(n_train: int = 400, n_val: int = 100, seed: int = 0, **options) -> OODDetector:
    return fitted(made(n_train, 3 * seed), made(n_val, 3 * seed + 1), **options)


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
        one = fitted(train, validation, accepted=0.95, patients=whose)
        assert (one.n_images, one.n_patients) == (1200, 100)
        _, low, high = one.refused()
        held.append(low <= 1 - one.accepts(FRESH).mean() <= high)
    assert np.mean(held) >= 0.85
    assert one.refused()[0] == pytest.approx(0.05, abs=1e-3)


def test_patients_are_not_cut_when_training_images_are_held_out():
    train, validation = made(400, 0, each=8), made(30, 1)
    whole = fitted(train, validation, patients=(patients(400, 8), patients(30) + 1000))
    cut = fitted(train, validation)
    assert (whole.n_images, whole.n_patients, cut.n_patients) == (430, 80, 430)
    assert (cut.distance(train) == whole.distance(train)).all()
    assert cut.limit < 0.9 * whole.limit  # seven images of the same patient are near


def test_the_limit_is_the_distance_that_the_share_asks_for():
    distances = np.random.default_rng(0).permutation(np.arange(1.0, 200))
    assert conformal_limit(distances, 0.95) == 190
    assert conformal_limit(distances, 0.99) == 198
    assert conformal_limit(np.arange(1.0, 51), 0.9) == 46  # 51 · 0.9 = 45.9
    assert conformal_limit(np.arange(1.0, 51), 0.99) == 50
    one = OODDetector(dim=1, limit=3.0, accepted=0.9, n_images=99, n_patients=99)
    one.whitening += 1
    assert one.refused() == pytest.approx((0.1, 0.0495, 0.1656), abs=1e-3)  # of Beta(10, 90)
    assert one.accepts(np.array([[3.0], [-3.0], [3.01], [-3.01]])).tolist() == [True, True, False, False]


def test_distance_is_mahalanobis():
    rng = np.random.default_rng(0)
    train, validation, new = (rng.normal(size=(n, 3)) @ [[1, 1, 0], [0, 3, 3], [0, 0, 9]] for n in (5000, 1000, 50))
    one = fitted(train, validation)
    difference = new - train.mean(0)
    expected = np.sqrt(np.einsum("nd,de,ne->n", difference, np.linalg.inv(np.cov(train.T)), difference))
    assert one.distance(new) == pytest.approx(expected, rel=0.02)
    assert one.distance(train.mean(0)[None]) == pytest.approx(0, abs=1e-6)


def test_the_size_of_a_feature_does_not_matter_nor_one_that_is_constant_or_there_twice():
    train, validation, new = made(300, 0), made(1000, 1), FRESH[:200]
    plain = fitted(train, validation)
    scaled = fitted(1000 * train - 7, 1000 * validation - 7)
    assert scaled.distance(1000 * new - 7) == pytest.approx(plain.distance(new), rel=1e-3)
    constant = fitted(*(np.hstack([part, np.full((len(part), 1), 3)]) for part in (train, validation)))
    assert constant.distance(np.hstack([new, np.full((200, 1), 4)])) == pytest.approx(plain.distance(new), rel=0.05)
    signs = np.tile([1.0, -1.0], 500)[:, None].repeat(3, axis=1)  # nothing to shrink: a direction of no variance stays
    thrice = fitted(signs, signs)
    assert thrice.whitening.isfinite().all()
    assert thrice.accepts(np.array([[1.0, 1, 1], [-1, -1, -1], [1, 1, -1]])).tolist() == [True, True, False]


def test_of_very_many_training_images_some_are_enough(monkeypatch):
    monkeypatch.setattr(ood, "_MOST", 150)
    one = fit(3000, 60)
    assert one.n_images == one.n_patients == 210
    rows = np.linspace(0, 2999, 150).astype(int)
    assert one.location.numpy() == pytest.approx(made(3000, 0)[rows].mean(0), rel=1e-3, abs=1e-3)


def test_saved_and_read_again_it_is_the_same_bit_for_bit(tmp_path):
    one = fit(accepted=0.973)
    one.save(tmp_path / "new" / "assessment.safetensors")
    other = OODDetector.load(tmp_path / "new" / "assessment.safetensors")
    assert one.config == other.config
    assert torch.equal(one.location, other.location)
    assert torch.equal(one.whitening, other.whitening)
    assert one.distance(FRESH).tobytes() == other.distance(FRESH).tobytes()


@pytest.mark.parametrize(
    ("train", "validation", "options", "told"),
    [
        (made(19, 0), made(100, 1), {}, "19 training patients are too few.*20 are needed"),
        (made(100, 0), made(19, 1), {}, "19 validation patients are too few"),
        (made(100, 0), made(40, 1), {"patients": (patients(100), patients(40, 8) + 999)}, "5 validation patients"),
        (np.ones((100, 3)), np.ones((40, 3)), {}, "constant"),
        (made(100, 0), made(40, 1), {"accepted": 1.0}, "between 0.5 and 1"),
        (made(100, 0), made(40, 1), {"accepted": 0.5}, "between 0.5 and 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(train, validation, options, told):
    with pytest.raises(VividError, match=told):
        fitted(train, validation, **options)


@pytest.mark.parametrize(
    ("arrays", "written", "told"),
    [
        ({}, {"vivid-vit": "{}"}, "not written by save_module"),
        ({}, {"vivid-assessment": json.dumps(SETTINGS | {"version": 3})}, "has version 3"),
        ({}, {"vivid-assessment": "{"}, "are broken"),
        ({}, {"vivid-assessment": json.dumps(SETTINGS | {"more": 1})}, "its configuration is not one of"),
        ({"more": np.zeros(4)}, {"vivid-assessment": json.dumps(SETTINGS)}, "its tensors are not those"),
    ],
)
def test_a_file_of_something_else_is_refused_and_one_of_version_1_is_read(tmp_path, arrays, written, told):
    path, stored = tmp_path / "assessment.safetensors", {"location": np.zeros(3), "whitening": np.eye(3)}
    save_file(stored | arrays, path, written)
    with pytest.raises(VividError, match=f"{path.name}: .*{told}"):
        OODDetector.load(path)
    save_file(stored, path, {"vivid-assessment": json.dumps(SETTINGS)})
    assert OODDetector.load(path).limit == 1
    assert WithOODScore(torch.nn.Identity(), str(path)).limit == 1
    OODDetector.load(path).save(path)
    assert WithOODScore(torch.nn.Identity(), str(path)).limit == 1


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
