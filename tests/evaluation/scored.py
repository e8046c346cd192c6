"""Made probabilities with known states, for tests of what is measured on them."""

import numpy as np

from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.measure import Scored, measure

FIELDS = ["Edema", "Mass, left", "Nodule: small"]


def findings(n=300, n_patients=120, seed=0, seeds=(0,), noise=(1.0, 2.0)):
    """Two encoders on the same images of three findings: "good" and "poor"."""
    rng = np.random.default_rng(seed)
    states = rng.choice([-1, 0, 1, 2], size=(n, len(FIELDS)), p=[0.1, 0.55, 0.3, 0.05])
    truth = (states == 1).astype(float)

    def probabilities(spread):
        return np.stack([1 / (1 + np.exp(-(2 * truth - 1 + spread * rng.normal(size=truth.shape)))) for _ in seeds])

    scored = {
        name: Scored(
            probabilities(spread), probabilities(spread), {"kind": "made"}, [{"kind": "linear"} for _ in seeds]
        )
        for name, spread in zip(("good", "poor"), noise, strict=True)
    }
    return scored, features(states, n_patients, rng)


def classes(n=200, n_patients=80, seed=0, n_classes=3):
    """One encoder on images of one class each."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, n)
    states = np.eye(n_classes, dtype=int)[truth]
    raw = np.exp(1.5 * states + rng.normal(size=states.shape))
    probabilities = (raw / raw.sum(1, keepdims=True))[None]
    scored = {"good": Scored(probabilities, probabilities, {"kind": "made"}, [{"kind": "linear"}])}
    return scored, features(states, n_patients, rng)


def features(states, n_patients, rng):
    """What a store gives, without features."""
    n = len(states)
    patients = np.array([f"p{i}" for i in rng.integers(0, n_patients, n)])
    ids = np.array([f"i{i}" for i in range(n)])
    return Features(np.zeros((n, 1), np.float32), states, patients, ids)


def measured(scored, test, *, fields=FIELDS, **options):
    """``measure`` with the test states for validation too."""
    settings = {"task": "made", "exclusive": False, "seeds": [0], "n_resamples": 100, **options}
    return measure(scored, fields=list(fields), validation_states=test.states, test=test, **settings)
