"""Objectives: what their terms count, and metrics that know a network that looks from one that does not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.tolerance import float32
from vivid_monai.errors import VividError
from vivid_monai.networks.objectives import FindingsBCE, StateMetrics, balanced
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT

pytestmark = pytest.mark.numeric


def make_output(n: int = 60, f: int = 3, *, sees: float = 2.0, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randint(-1, 3, (n, f), generator=generator)
    logits = torch.randn(n, f, 3, generator=generator)
    logits += sees * torch.nn.functional.one_hot(states.clamp(min=0), 3)
    blank = {"log_probs": torch.zeros(1, f, 3).log_softmax(-1)}
    return {"log_probs": logits.log_softmax(-1), "states": states, "blank": blank}


def measure(*outputs, enough=1):
    engine = SimpleNamespace(state=SimpleNamespace(metrics={}))
    metric = StateMetrics(["a", "b", "c"], enough, enough)
    metric.reset()
    for output in outputs:
        engine.state.output = output
        metric.iteration_completed(engine)
    metric.completed(engine, "macro_auroc")
    return engine.state.metrics


def split(output):
    parts = [{k: v[:20] if k != "blank" else v for k, v in output.items()}]
    return [*parts, {k: v[20:] if k != "blank" else v for k, v in output.items()}]


def test_auroc_is_scikit_learns_over_present_and_absent_of_all_batches():
    output = make_output()
    measured = measure(*split(output))
    expected = []
    for f, name in enumerate("abc"):
        rows = np.isin(output["states"][:, f], (0, 1))
        score = (output["log_probs"][:, f, 1] - output["log_probs"][:, f, 0]).numpy()[rows]
        expected.append(roc_auc_score(output["states"][rows, f] == 1, score))
        assert measured[f"auroc/{name}"] == pytest.approx(expected[-1])
    assert measured["macro_auroc"] == pytest.approx(np.mean(expected))
    assert list(measured)[:4] == ["macro_auroc", "nll_own", "nll_shuffled", "nll_blank"]


def test_each_of_several_data_sets_has_a_macro_auroc_of_its_own():
    output = make_output()
    output["dataset"] = ["nih", "kermany", "nih"] * 20
    measured = measure(*split(output))
    for name in ("nih", "kermany"):
        rows = np.array(output["dataset"]) == name
        alone = measure({"blank": output["blank"], **{key: output[key][rows] for key in ("log_probs", "states")}})
        assert measured[f"macro_auroc/{name}"] == alone["macro_auroc"]
    plain = measure(*split(make_output()))
    assert {key: value for key, value in measured.items() if not key.startswith("macro_auroc/")} == plain
    assert measure({**output, "dataset": ["nih"] * 60}).keys() == plain.keys(), "of one data set, all is said already"


def test_macro_leaves_out_fields_with_too_few_of_one_state():
    output = make_output()
    output["states"][:, 0] = torch.where(output["states"][:, 0] == 1, 0, output["states"][:, 0])
    measured = measure(output, enough=5)
    assert np.isnan(measured["auroc/a"])
    assert measured["macro_auroc"] == pytest.approx((measured["auroc/b"] + measured["auroc/c"]) / 2)


def test_nll_is_that_of_the_answerable_states():
    output = make_output()
    answerable = output["states"] >= 0
    expected = -output["log_probs"].gather(-1, output["states"].clamp(min=0)[..., None])[..., 0][answerable].mean()
    assert measure(*split(output))["nll_own"] == pytest.approx(expected.item())
    assert measure(output)["nll_blank"] == pytest.approx(np.log(3))


def test_only_a_network_that_looks_loses_by_shuffled_images():
    looks, guesses = make_output(sees=3.0), make_output(sees=0.0)
    guesses["log_probs"] = guesses["log_probs"][:1].expand_as(guesses["log_probs"])
    assert measure(looks)["nll_shuffled"] > measure(looks)["nll_own"] + 1
    assert measure(guesses)["nll_shuffled"] == pytest.approx(measure(guesses)["nll_own"])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_no_record_is_judged_by_its_own_image_among_few(n):
    """Each image is sure of a state that no other image's record has, and its own record has."""
    states = torch.arange(n)[:, None].expand(n, 3) % 3
    log_probs = torch.full((n, 3, 3), -100.0).scatter(2, states[..., None], 0.0)
    if n == 4:
        states, log_probs = states.clone(), log_probs.clone()
        states[3], log_probs[3] = 2, torch.tensor([-50.0, -50.0, 0.0])
    measured = measure({"log_probs": log_probs, "states": states, "blank": {"log_probs": log_probs[:1]}})
    assert measured["nll_own"] == 0
    assert np.isnan(measured["nll_shuffled"]) if n == 1 else measured["nll_shuffled"] > 20


def test_an_empty_pass_is_an_error():
    with pytest.raises(RuntimeError, match="no batch"):
        measure()


@pytest.mark.parametrize(("pool", "prefix"), [("cls", 1), ("mean", 1), ("cls+mean", 1), (None, 0)])
def test_bce_is_torchs_over_the_findings_that_are_asked_and_known(pool, prefix):
    torch.manual_seed(0)
    bce = FindingsBCE(["a", "b", "c"], 8, pool=pool, prefix=prefix)
    torch.nn.init.normal_(bce.head.weight)
    tokens = torch.randn(5, 4, 8, requires_grad=True)
    states = torch.tensor([[0, 1, 2], [1, -1, 0], [2, 2, -1], [0, 0, 0], [1, 1, 1]])
    asked = states >= 0
    asked[3] = False
    batch = {"states": states, "asked": asked}
    known = asked & (states < 2)
    means = tokens[:, prefix:].mean(1)
    features = {"cls": tokens[:, 0], "mean": means, None: means, "cls+mean": torch.cat([tokens[:, 0], means], 1)}[pool]
    logits = bce.head(features)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], states[known].float())
    assert bce.counts(batch)["bce"] == known.sum() == 7
    torch.testing.assert_close(bce(tokens, batch)["bce"] / 7, expected)
    answers = bce.predict(tokens, batch)
    torch.testing.assert_close(answers["log_probs"].exp()[..., 1], logits.sigmoid())
    torch.testing.assert_close(answers["log_probs"].exp().sum(-1), torch.ones(5, 3))
    assert answers["states"][0].tolist() == [0, 1, -1], "what has no probability is not measured"


def test_bce_reads_through_an_spd_and_trains_it():
    spd, tokens = SPD(8, groups=2, heads=2), torch.randn(4, 5, 8)
    bce = FindingsBCE(["a", "b"], 8, pool="spd", spd=spd)
    torch.nn.init.normal_(bce.head.weight)
    batch = {"states": torch.tensor([[0, 1]] * 4), "asked": torch.ones(4, 2, dtype=torch.bool)}
    logits = bce.head(spd(tokens).embeddings.flatten(1))
    torch.testing.assert_close(bce.predict(tokens, batch)["log_probs"].exp()[..., 1], logits.sigmoid())
    bce(tokens, batch)["bce"].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in spd.parameters())
    assert FindingsBCE(["a"], 8, pool="cls", spd=spd).spd is None, "what it registers is what it trains"


def test_bce_needs_the_tokens_it_pools():
    with pytest.raises(VividError, match="pool='cls'"):
        FindingsBCE(["a"], 8, pool="cls", prefix=0)


def test_bce_learns_a_bright_corner():
    torch.manual_seed(0)
    encoder = ViT(img_size=32, preset="micro")
    network = Pretrainer(encoder, {"findings": FindingsBCE(["bright"], encoder.embed_dim)})
    states = torch.arange(16)[:, None] % 2
    image = 0.1 * torch.randn(16, 1, 32, 32)
    image[:, :, :8, :8] += states[..., None, None]
    batch = {"image": image, "states": states, "asked": states >= 0}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = network.loss(network(batch), network.counts(batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(2), rel=float32(depth=1))
    assert losses[-1] < 0.3


def tokens_and_batch(n: int = 40, f: int = 3, d: int = 8):
    generator = torch.Generator().manual_seed(5)
    states = torch.randint(-1, 3, (n, f), generator=generator)
    asked = torch.rand(n, f, generator=generator) < 0.8
    return torch.randn(n, 5, d, generator=generator), {"states": states, "asked": asked}


@pytest.mark.parametrize("uncertain", ["ignored", "state"])
def test_a_head_starts_from_given_weights(uncertain):
    start = torch.nn.Linear(8, 3)
    objective = FindingsBCE(list("abc"), 8, pool="mean", uncertain=uncertain, start=start)
    weight, bias = objective.present()
    torch.testing.assert_close(weight, start.weight.detach())
    torch.testing.assert_close(bias, start.bias.detach())
    tokens, batch = tokens_and_batch()
    log_probs = objective.predict(tokens, batch)["log_probs"]
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(40, 3))
    expected = start(tokens[:, 1:].mean(1))
    torch.testing.assert_close(log_probs[..., 1] - log_probs[..., 0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(VividError, match=r"from 8 features to 3 findings is no start: there are 16 features"):
        FindingsBCE(list("abc"), 8, pool="cls+mean", start=start)
    with pytest.raises(VividError, match="uncertain='maybe'"):
        FindingsBCE(list("abc"), 8, uncertain="maybe")


def test_with_three_states_uncertain_counts_and_present_remains_one_logit():
    objective = FindingsBCE(list("abc"), 8, pool="mean", uncertain="state")
    torch.nn.init.normal_(objective.head.weight)
    torch.nn.init.normal_(objective.head.bias)
    tokens, batch = tokens_and_batch()
    logits = objective.head(tokens[:, 1:].mean(1)).view(40, 3, 3)
    known = batch["asked"] & (batch["states"] >= 0)
    expected = torch.nn.functional.cross_entropy(logits[known], batch["states"][known], reduction="sum")
    torch.testing.assert_close(objective(tokens, batch)["nll"], expected)
    assert objective.counts(batch)["nll"] == known.sum()
    assert (batch["states"][known] == 2).any()
    weight, bias = objective.present()
    told = torch.sigmoid(tokens[:, 1:].mean(1) @ weight.T + bias)
    probabilities = logits.softmax(-1)
    torch.testing.assert_close(told, probabilities[..., 1] / probabilities[..., :2].sum(-1))
    assert torch.equal(objective.predict(tokens, batch)["states"], batch["states"])


@pytest.mark.parametrize("uncertain", ["ignored", "state"])
def test_balanced_each_state_of_a_field_counts_the_same_and_the_mean_is_one(uncertain):
    rng = np.random.default_rng(0)
    states = rng.choice([-1, 0, 1, 2], p=[0.2, 0.5, 0.1, 0.2], size=(300, 3))
    states[:, 2] = np.where(states[:, 2] == 1, 0, states[:, 2])
    weights = balanced(states, uncertain=uncertain).numpy()
    codes = [0, 1, 2] if uncertain == "state" else [0, 1]
    for field in range(3):
        mass = [weights[field, code] * (states[:, field] == code).sum() for code in codes]
        mass = [one for one in mass if one]
        np.testing.assert_allclose(mass, np.isin(states[:, field], codes).sum() / len(mass), rtol=1e-5)
    tokens, batch = tokens_and_batch()
    plain = FindingsBCE(list("abc"), 8, pool="mean", uncertain=uncertain)
    weighted = FindingsBCE(list("abc"), 8, pool="mean", uncertain=uncertain, state_weights=torch.from_numpy(weights))
    term = next(iter(plain.weights))
    own = torch.from_numpy(weights)[torch.arange(3), batch["states"].clamp(min=0)][plain._known(batch)].mean()
    torch.testing.assert_close(weighted(tokens, batch)[term], plain(tokens, batch)[term] * own)  # of a head of zeros
    assert "state_weights" not in weighted.state_dict()
