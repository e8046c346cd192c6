"""The published protocol: as many steps as it says, the best of them kept, its randomness its own."""

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler

from tests.evaluation.made_features import classes, findings
from vivid_monai.errors import VividError
from vivid_monai.evaluation.probes import linear
from vivid_monai.evaluation.probes.linear import fit_linear, fit_published
from vivid_monai.metrics.masked import masked_auroc


def test_defaults_are_the_published_ones(monkeypatch):
    train, validation = findings(seed=1), findings(seed=2)
    drawn = []

    class Counted(BatchSampler):
        def __iter__(self):
            for rows in super().__iter__():
                drawn.append(rows)
                yield rows

    monkeypatch.setattr(linear, "BatchSampler", Counted)
    told = fit_published(train, validation).description
    assert (told["steps"], told["batch_size"]) == (3000, 32)
    assert len(drawn) == 3000
    assert {len(rows) for rows in drawn} == {32}
    n = np.isin(train.states, (0, 1)).any(1).sum()
    seen = np.concatenate(drawn)
    for start in range(0, len(seen) - n, n):
        assert sorted(seen[start : start + n]) == list(range(n)), "every image once a round"


def test_one_step_is_adamw_on_the_mean_of_the_answered_states():
    train, validation = findings(n=32, seed=1), findings(seed=2)
    counted = int(np.isin(train.states, (0, 1)).any(1).sum())
    probe = fit_published(train, validation, steps=1, batch_size=counted, lr=0.01, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(8, 3)
    with torch.no_grad():
        head.weight.copy_((torch.rand((3, 8), generator=generator) * 2 - 1) / 8**0.5)
        head.bias.copy_((torch.rand((3,), generator=generator) * 2 - 1) / 8**0.5)
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0.1)
    logits = head(torch.from_numpy(train.x))
    pairs = [(logits[i, f], float(train.states[i, f])) for i, f in np.argwhere(np.isin(train.states, (0, 1)))]
    losses = [torch.nn.functional.softplus(-logit if y else logit) for logit, y in pairs]
    torch.stack(losses).mean().backward()
    optimiser.step()
    np.testing.assert_allclose(probe.weight, head.weight.detach(), atol=1e-6)
    np.testing.assert_allclose(probe.bias, head.bias.detach(), atol=1e-6)


def test_the_best_validation_step_is_kept():
    train, validation = findings(seed=1), findings(seed=2)
    probe = fit_published(train, validation, steps=300, evaluate_every=20, lr=0.05)
    tried = probe.description["tried"]
    assert len(tried) == 15
    best = probe.description["best_step"]
    assert tried[str(best)] == max(tried.values())
    kept = masked_auroc(probe.logits(validation.x), validation.states).mean()
    assert kept == pytest.approx(tried[str(best)], abs=1e-5)
    assert best != 300, "the case tests something"


def test_classes():
    train, validation = classes(seed=1), classes(seed=2)
    train.states[:, 3] = 0
    train.states[train.states.sum(1) == 0, 0] = 1
    probe = fit_published(train, validation, exclusive=True, steps=200)
    p = probe.probabilities(validation.x)
    np.testing.assert_allclose(p.sum(1), 1)
    assert probe.untrained == (3,)
    assert (p[:, 3] == 0).all()
    accuracy = (p.argmax(1) == validation.states.argmax(1)).mean()
    assert accuracy == pytest.approx(max(probe.description["tried"].values()), abs=1e-5)
    assert accuracy > 0.5


def test_comes_near_the_optimum_on_easy_data():
    train, validation, test = (findings(n=1000, seed=seed, blanks=0.1) for seed in (1, 2, 3))
    scores = [masked_auroc(fit(train, validation).logits(test.x), test.states) for fit in (fit_linear, fit_published)]
    assert (scores[1] > 0.7).all()
    assert (scores[0] - scores[1] < 0.05).all()


def test_the_seed_is_its_own():
    train, validation = findings(seed=1), findings(seed=2)
    before = torch.get_rng_state()
    first, again, other = (fit_published(train, validation, steps=50, seed=seed).weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_bad_input_is_told():
    train, validation = findings(seed=1), findings(seed=2)
    with pytest.raises(VividError, match="at least one step"):
        fit_published(train, validation, steps=0)
    validation.states[:] = 1
    with pytest.raises(VividError, match="best step cannot be chosen"):
        fit_published(train, validation)
    train.states[:] = -1
    with pytest.raises(VividError, match="no field has both"):
        fit_published(train, validation)
