"""The attentive probe: it finds what one patch alone tells, is its seed's alone, and is stored whole."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.evaluation.made_features import features
from tests.evaluation.small import encoder
from tests.tolerance import close
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import TokenEncoder, load_encoder
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.probes import AttentiveProbe, fit_probe, load_probe, save_probe

FEW = {"lrs": (3e-3,), "weight_decays": (0.01,), "epochs": 12}


def planted(seed: int, n: int = 400, *, classes: int = 0) -> Features:
    """Tokens of noise, CLS and 16 patches. Where a finding is present, one patch has its sign and another the opposite
    of it, so that the mean knows nothing. Of classes, each image has the sign of its own."""
    rng = np.random.default_rng(seed)
    signs = 5 * np.eye(16)[: classes or 2]
    x = rng.normal(size=(n, 17, 16))
    chosen = np.eye(classes)[rng.integers(0, classes, n)] if classes else rng.integers(0, 2, (n, 2))
    for i, states in enumerate(chosen.astype(bool)):
        patches = rng.permutation(np.arange(1, 17)).reshape(-1, 2)
        for sign, (one, other) in zip(signs[states], patches, strict=False):
            x[i, one] += sign
            x[i, other] -= sign
    part = features(3 * x + 7, chosen.astype(np.int64), seed)
    return replace(part, x=part.x.astype(np.float16))


@pytest.fixture(scope="module")
def probe() -> AttentiveProbe:
    made = fit_probe(planted(1), planted(2, 200), kind="attentive", **FEW)
    assert isinstance(made, AttentiveProbe)
    return made


def test_it_finds_what_one_patch_tells_where_pooled_features_do_not(probe: AttentiveProbe) -> None:
    train, validation, test = planted(1), planted(2, 200), planted(3)
    found = roc_auc_score(test.states, probe.probabilities(test.x))
    assert found > 0.95
    for pool in ("cls", "mean"):
        pooled = [
            replace(one, x=(one.x[:, 0] if pool == "cls" else one.x[:, 1:].mean(1)).astype(np.float32))
            for one in (train, validation, test)
        ]
        linear = fit_probe(pooled[0], pooled[1]).probabilities(pooled[2].x)
        assert roc_auc_score(test.states, linear) < 0.6


@pytest.mark.numeric
def test_folded_it_reads_raw_tokens_as_it_reads_standardised_ones(probe: AttentiveProbe) -> None:
    tokens = torch.from_numpy(planted(3, 50).x).float()
    head = copy.deepcopy(probe.module)
    head.scale[3] = torch.inf  # of a constant channel
    for one in (probe.module, head):
        expected = one(tokens)
        folded = one.head(one.folded_spd().pool(tokens))
        torch.testing.assert_close(folded, expected, **close(depth=8, scale=50))
    assert not torch.allclose(head(tokens), probe.module(tokens), atol=0.01)


def test_unanswered_states_are_left_out_and_fields_of_one_state_untaught(probe: AttentiveProbe) -> None:
    train, validation = planted(1), planted(2, 200)
    train.states[::2, 0] = -1
    train.states[1::4, 0] = 2
    train.states[:, 1] = 1
    one = fit_probe(train, validation, kind="attentive", **FEW)
    assert one.untrained == (1,)
    p = one.probabilities(planted(3).x)
    assert (p[:, 1] == 0.5).all()
    other = train.states.copy()
    other[::2, 0] = 1 - planted(1).states[::2, 0]  # what is not answered cannot matter
    other[::2, 0] = -1
    same = fit_probe(replace(train, states=other), validation, kind="attentive", **FEW)
    np.testing.assert_array_equal(same.probabilities(planted(3).x), p)


def test_classes_exclude_each_other() -> None:
    train, validation, test = (planted(seed, classes=3) for seed in (1, 2, 3))
    one = fit_probe(train, validation, kind="attentive", exclusive=True, **FEW)
    p = one.probabilities(test.x)
    np.testing.assert_allclose(p.sum(1), 1)
    assert (p.argmax(1) == test.states.argmax(1)).mean() > 0.85


def test_it_is_of_its_seed_alone_and_says_what_it_tried(probe: AttentiveProbe) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    again = fit_probe(planted(1), planted(2, 200), kind="attentive", **FEW)
    assert torch.equal(torch.random.get_rng_state(), state)
    x = planted(3).x
    np.testing.assert_array_equal(again.probabilities(x), probe.probabilities(x))
    other = fit_probe(planted(1), planted(2, 200), kind="attentive", seed=1, **FEW)
    assert not np.array_equal(other.probabilities(x), probe.probabilities(x))
    (tried,) = probe.description["tried"].values()
    assert min(tried) == tried[probe.description["epoch"] - 1]


def test_it_is_stored_whole_and_refuses_other_tokens(probe: AttentiveProbe, tmp_path) -> None:
    save_probe(probe, tmp_path / "probe.safetensors", fields=["a", "b"])
    read, fields = load_probe(tmp_path / "probe.safetensors", encoder="abc")
    assert fields == ("a", "b")
    x = planted(3).x
    np.testing.assert_array_equal(read.probabilities(x), probe.probabilities(x))
    with pytest.raises(VividError, match="not of def"):
        load_probe(tmp_path / "probe.safetensors", encoder="def")
    with pytest.raises(VividError, match=r"takes tokens \(N, T, 16\)"):
        read.probabilities(x[:, :, :8])
    with pytest.raises(VividError, match="not usable"):
        fit_probe(planted(1), planted(2), kind="linear")
    with pytest.raises(VividError, match="at least one epoch"):
        fit_probe(planted(1), planted(2), kind="attentive", epochs=0)


def test_the_tokens_of_an_encoder() -> None:
    one = encoder(0)
    tokens = TokenEncoder(one)
    images = torch.rand(2, *one.preprocess.shape)
    assert torch.equal(tokens(images), one.tokens(images))
    assert tokens.shape == tuple(one.tokens(images).shape[1:])
    assert tokens.fingerprint() != one.fingerprint()
    with pytest.raises(VividError, match="gives no tokens to attend to"):
        TokenEncoder(load_encoder("thumbnails:8"))
