"""The k-NN probe against a brute-force reading of its definition."""

import numpy as np
import pytest

from tests.evaluation.made_features import classes, findings
from vivid_monai.errors import VividError
from vivid_monai.evaluation.probes.knn import KS, fit_knn
from vivid_monai.metrics.masked import masked_auroc


def brute_force(train, x, f: int, k: int, exclusive: bool = False) -> np.ndarray:
    """Row by row: the k most similar training images that answer field f, by cosine of standardised features."""
    mean, std = train.x.astype(np.float64).mean(0), train.x.astype(np.float64).std(0)
    rows = [i for i in range(len(train.x)) if train.states[i, f] in (0, 1)]
    prevalence = np.mean([train.states[i, f] for i in rows])
    out = []
    for query in (x - mean) / std:
        near = []
        for i in rows:
            z = (train.x[i] - mean) / std
            near.append((z @ query / np.linalg.norm(z) / np.linalg.norm(query), train.states[i, f]))
        near = sorted(near, reverse=True)[:k]
        v = np.exp(np.array([s for s, _ in near]) / 0.07)
        share = (v * [y for _, y in near]).sum() / v.sum()
        out.append((len(near) * share + prevalence) / (len(near) + 1))
    return np.array(out)


@pytest.mark.parametrize("blanks", [0.0, 0.5], ids=["complete", "gaps"])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_equals_its_definition(blanks, k):
    train, validation = findings(n=80, seed=1, blanks=blanks), findings(n=40, seed=2, blanks=blanks)
    got = fit_knn(train, validation, neighbours=[k]).probabilities(validation.x)
    for f in range(3):
        np.testing.assert_allclose(got[:, f], brute_force(train, validation.x, f, k), atol=1e-4)


def test_classes_sum_to_one_and_equal_the_definition():
    train, validation = classes(n=80, seed=1), classes(n=40, seed=2)
    got = fit_knn(train, validation, exclusive=True, neighbours=[5]).probabilities(validation.x)
    np.testing.assert_allclose(got.sum(1), 1)
    for f in range(4):
        np.testing.assert_allclose(got[:, f], brute_force(train, validation.x, f, 5), atol=1e-4)


@pytest.mark.parametrize("exclusive", [False, True])
def test_k_has_the_lowest_validation_loss(exclusive):
    make = classes if exclusive else findings
    train, validation = make(seed=1), make(seed=2)
    told = fit_knn(train, validation, exclusive=exclusive).description
    assert sorted(map(int, told["tried"])) == sorted(KS)
    for f, k in enumerate(told["k"]):
        assert told["tried"][str(k)][f] == min(losses[f] for losses in told["tried"].values())
    probe = fit_knn(train, validation, exclusive=exclusive, neighbours=[told["k"][0]])
    p, states = probe.probabilities(validation.x), validation.states
    if exclusive:
        loss = -np.log(p[states == 1]).mean()
    else:
        rows = np.isin(states[:, 0], (0, 1))
        loss = -np.log(np.where(states[rows, 0] == 1, p[rows, 0], 1 - p[rows, 0])).mean()
    assert told["tried"][str(told["k"][0])][0] == pytest.approx(loss, abs=1e-5)


def test_learns():
    train, validation, test = (findings(n=400, seed=seed) for seed in (1, 2, 3))
    assert masked_auroc(fit_knn(train, validation).probabilities(test.x), test.states).min() > 0.65


def test_untrained_columns_are_named():
    train, validation = findings(seed=1), findings(seed=2)
    train.states[train.states[:, 1] == 0, 1] = 1
    probe = fit_knn(train, validation)
    assert probe.untrained == (1,)
    assert (probe.probabilities(validation.x)[:, 1] == 0.5).all()
    assert probe.description["k"][1] is None


def test_bad_input_is_told():
    train, validation = findings(seed=1), findings(seed=2)
    with pytest.raises(VividError, match="at least 1"):
        fit_knn(train, validation, neighbours=[0])
    with pytest.raises(VividError, match=r"\(N, 8\)"):
        fit_knn(train, validation).probabilities(validation.x[:, :3])
    train.states[:] = 2
    with pytest.raises(VividError, match="no field has both"):
        fit_knn(train, validation)
