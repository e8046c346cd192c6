"""Validation metrics: what they count, and that they tell a network that looks from one that does not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vivid_monai.engines.metrics import FieldMetrics, MacroAUROC, StateNLL


def make_output(n: int = 60, f: int = 3, *, sees: float = 2.0, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randint(-1, 3, (n, f), generator=generator)
    logits = torch.randn(n, f, 3, generator=generator)
    logits += sees * torch.nn.functional.one_hot(states.clamp(min=0), 3)
    blank = torch.zeros(1, f, 3).log_softmax(-1)
    return {"log_probs": logits.log_softmax(-1), "states": states, "blank": blank}


def measure(metric, *outputs):
    metric.reset()
    for output in outputs:
        metric.iteration_completed(SimpleNamespace(state=SimpleNamespace(output=output)))
    return metric.compute()


def split(output):
    parts = [{k: v[:20] if k != "blank" else v for k, v in output.items()}]
    return [*parts, {k: v[20:] if k != "blank" else v for k, v in output.items()}]


def test_auroc_is_scikit_learns_over_present_and_absent_of_all_batches():
    output = make_output()
    per_field = measure(FieldMetrics(["a", "b", "c"]), *split(output))
    expected = []
    for f, name in enumerate("abc"):
        rows = np.isin(output["states"][:, f], (0, 1))
        score = (output["log_probs"][:, f, 1] - output["log_probs"][:, f, 0]).numpy()[rows]
        expected.append(roc_auc_score(output["states"][rows, f] == 1, score))
        assert per_field[f"auroc/{name}"] == pytest.approx(expected[-1])
    assert measure(MacroAUROC(min_present=1, min_absent=1), *split(output)) == pytest.approx(np.mean(expected))


def test_macro_leaves_out_fields_with_too_few_of_one_state():
    output = make_output()
    output["states"][:, 0] = torch.where(output["states"][:, 0] == 1, 0, output["states"][:, 0])
    per_field = measure(FieldMetrics(["a", "b", "c"]), output)
    assert np.isnan(per_field["auroc/a"])
    expected = (per_field["auroc/b"] + per_field["auroc/c"]) / 2
    assert measure(MacroAUROC(min_present=5, min_absent=5), output) == pytest.approx(expected)


def test_nll_is_that_of_the_answerable_states():
    output = make_output()
    answerable = output["states"] >= 0
    expected = -output["log_probs"].gather(-1, output["states"].clamp(min=0)[..., None])[..., 0][answerable].mean()
    assert measure(StateNLL("own"), *split(output)) == pytest.approx(expected.item())
    assert measure(StateNLL("blank"), output) == pytest.approx(np.log(3))


def test_only_a_network_that_looks_loses_by_shuffled_images():
    looks, guesses = make_output(sees=3.0), make_output(sees=0.0)
    guesses["log_probs"] = guesses["log_probs"][:1].expand_as(guesses["log_probs"])
    assert measure(StateNLL("shuffled"), looks) > measure(StateNLL("own"), looks) + 1
    assert measure(StateNLL("shuffled"), guesses) == pytest.approx(measure(StateNLL("own"), guesses))


def test_an_empty_pass_is_an_error():
    with pytest.raises(RuntimeError, match="no batch"):
        measure(MacroAUROC())
