"""The one path from encoders to numbers."""

import numpy as np
import pytest
import torch

from tests.evaluation.small import data_set, encoder
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import TokenEncoder
from vivid_monai.evaluation.evaluate import evaluate
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.task import Task
from vivid_monai.evaluation.workflows import provenance

FEW = {"min_present": 1, "min_absent": 1, "n_resamples": 20}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    data = data_set(tmp_path_factory.mktemp("x") / "data", n=120)
    return Task(name="t", manifest=data, fields=["Edema", "Fracture"])


def test_scores_are_the_probes_own_on_the_test_features(task):
    got = evaluate({"a": [encoder(1)], "b": [encoder(2)]}, task, FeatureStore(None), **FEW)
    for name, seed in (("a", 1), ("b", 2)):
        _, _, test = task.parts(encoder(seed), FeatureStore(None))
        np.testing.assert_array_equal(got.scored[name].test[0], got.probes[name][0].probabilities(test.x))
    assert set(got.seconds["a"]) == {"features", "probes"}
    assert (got.scored["a"].test != got.scored["b"].test).any()


def test_the_attentive_probe_reads_the_tokens_of_the_same_images(task, tmp_path):
    few = {"probe_options": {"epochs": 1, "lrs": [1e-3], "weight_decays": [0.0]}, **FEW}
    store = FeatureStore(tmp_path)
    for _ in range(2):  # computed, then from the cache
        got = evaluate({"a": [encoder(1)]}, task, store, probe="attentive", **few)
        _, _, test = task.parts(TokenEncoder(encoder(1)), store)
        assert (test.x.shape, test.x.dtype) == ((len(test.ids), 5, 128), np.float16)
        np.testing.assert_array_equal(got.scored["a"].test[0], got.probes["a"][0].probabilities(test.x))
    assert got.results.encoders["a"]["encoder"]["pool"] == "tokens"
    assert got.results.encoders["a"]["probes"][0]["kind"] == "attentive"


def test_one_encoder_per_seed_or_one_for_all(task):
    with pytest.raises(VividError, match="a: 2 encoders for 3 seeds"):
        evaluate({"a": [encoder(1), encoder(2)]}, task, FeatureStore(None), seeds=[0, 1, 2], **FEW)
    with pytest.raises(VividError, match="no encoder"):
        evaluate({}, task, FeatureStore(None), **FEW)


def test_several_runs_are_told_with_their_sources(task):
    got = evaluate({"a": [encoder(1), encoder(2)]}, task, FeatureStore(None), seeds=[0, 1], **FEW)
    told = got.results.encoders["a"]["encoder"]
    assert told["source"] == ["vit-1", "vit-2"]
    assert len(set(told["fingerprint"])) == 2


@pytest.mark.parametrize(("wrong", "word"), [("test", "test"), ("val", "validation")])
def test_encoders_that_read_other_images_are_not_compared(task, wrong, word):
    class Store(FeatureStore):
        def features(self, one, manifest, split, fields, *, title="", keep=True):
            part = super().features(one, manifest, split, fields, title=title, keep=keep)
            if split == wrong and title.startswith("b"):
                part.ids[0] = "other"
            return part

    with pytest.raises(VividError, match=f"b could not read the same {word} images"):
        evaluate({"a": [encoder(1)], "b": [encoder(2)]}, task, Store(None), **FEW)


def test_leaves_the_global_random_state_alone(task):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    evaluate({"a": [encoder(1)]}, task, FeatureStore(None), probe="published", probe_options={"steps": 20}, **FEW)
    assert torch.equal(torch.get_rng_state(), before)


def test_command_can_be_typed_again(monkeypatch):
    words = ["/x/monai/bundle/__main__.py", "run", "--config_file", "['a.json','b.json']", "--name", "two words", "$x'"]
    monkeypatch.setattr("sys.argv", words)
    assert provenance()["command"] == (
        "python -m monai.bundle run --config_file \"['a.json','b.json']\" --name 'two words' '$x'\"'\"''"
    )
    assert {"torch", "monai", "vivid-monai", "python"} <= set(provenance()["versions"])
