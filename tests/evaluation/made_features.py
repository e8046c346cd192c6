"""Features with states that can be learned from them."""

import numpy as np

from vivid_monai.evaluation.features import Features


def findings(n: int = 300, d: int = 8, f: int = 3, seed: int = 0, blanks: float = 0.3) -> Features:
    """Independent yes/no fields on features of very different size; a share of null, and of uncertain states."""
    rng = np.random.default_rng(seed)
    world = np.random.default_rng(99)
    x = rng.normal(size=(n, d)) * world.uniform(0.1, 10, d) + 5 * world.normal(size=d)
    z = (x - 5) / 5
    states = (z @ world.normal(size=(d, f)) + rng.logistic(size=(n, f)) * 2 > 0).astype(np.int64)
    states[rng.random((n, f)) < blanks] = -1
    states[rng.random((n, f)) < blanks / 3] = 2
    return features(x, states, seed)


def classes(n: int = 300, d: int = 8, f: int = 4, seed: int = 0) -> Features:
    """Exactly one present state in each row."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, f, n)
    x = np.random.default_rng(99).normal(size=(f, d))[chosen] + rng.normal(size=(n, d))
    return features(x, np.eye(f, dtype=np.int64)[chosen], seed)


def features(x: np.ndarray, states: np.ndarray, seed: int) -> Features:
    """Two images to a patient."""
    ids = np.array([f"s{seed}-i{i}" for i in range(len(x))])
    patients = np.array([f"s{seed}-p{i // 2}" for i in range(len(x))])
    return Features(x.astype(np.float32), states, patients, ids, encoder="abc")
