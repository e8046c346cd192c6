"""The start of a fine-tuning: the encoder as the run keeps it, a copy to train, a head that is a probe."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.evaluation.small import PREPROCESS, data_set, encoder
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import VividEncoder, load_encoder
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.finetuning import fit_head, start_encoder
from vivid_monai.evaluation.start import trainable
from vivid_monai.evaluation.task import Task
from vivid_monai.networks.modules import save_module
from vivid_monai.networks.resnet import ResNet


@pytest.fixture
def spec(tmp_path) -> str:
    one, path = encoder(1), tmp_path / "start.safetensors"
    save_module(one.network, path, kind="vit", preprocess=one.preprocess.to_dict(), pool="mean")
    return str(path)


def test_the_run_keeps_the_encoder_it_started_from(spec, tmp_path):
    given, run = load_encoder(spec, pool="cls+mean"), tmp_path / "run"
    first = start_encoder(spec, run, pool="cls+mean", image_size=16, mean=PREPROCESS.mean, vit=None)
    again = start_encoder("nothing that is there", run)
    assert first.pool == again.pool == "cls+mean"
    assert first.fingerprint() == again.fingerprint() == given.fingerprint()
    assert (run / "config.json").is_file()
    fresh = start_encoder(f"untrained:{spec}", tmp_path / "fresh", seed=3)
    assert fresh.fingerprint() == load_encoder(f"untrained:{spec}", seed=3).fingerprint() != given.fingerprint()


@pytest.mark.parametrize("wrong", [{"image_size": 32}, {"in_channels": 3}, {"mean": 0.1}, {"patch_size": 16}])
def test_a_knob_that_says_otherwise_is_an_error_before_anything_is_written(spec, tmp_path, wrong):
    with pytest.raises(VividError, match=f"{next(iter(wrong))}=.* is not that of the start encoder"):
        start_encoder(spec, tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


def test_the_copy_to_train_computes_the_same_and_leaves_the_frozen_one_alone():
    frozen, x = encoder(1), torch.randn(2, 1, 16, 16)
    state = torch.get_rng_state()
    own = trainable(frozen, drop_path=0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(own.eval()(x), frozen.network(x))
    assert not torch.equal(own.train()(x), frozen.network(x)), "drop path"
    assert all(parameter.requires_grad for parameter in own.parameters())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    resnet = VividEncoder(ResNet(img_size=16, depth=10, width=8), PREPROCESS)
    assert trainable(resnet).stem[0].weight.requires_grad
    with pytest.raises(VividError, match="resnet10 has no drop path"):
        trainable(resnet, drop_path=0.1)


@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_a_head_is_the_probe_and_is_fitted_once(tmp_path, head, monkeypatch):
    manifest, one = data_set(tmp_path / "data"), encoder(1)
    task, store = Task(name="made", manifest=manifest, fields=manifest.fields), FeatureStore(tmp_path / "features")
    first = fit_head(one, task, store, tmp_path, head=head)
    monkeypatch.setattr("vivid_monai.evaluation.finetuning.fit_probe", None)
    again = fit_head(one, task, store, tmp_path, head=head)
    np.testing.assert_array_equal(first.probe.weight, again.probe.weight)
    test = store.features(first.encoder, manifest, "test", task.fields)
    logits = first.linear()(torch.from_numpy(test.x)).double().sigmoid().detach().numpy()
    np.testing.assert_allclose(logits, first.probe.probabilities(test.x), atol=1e-4)
    assert np.ptp(logits, axis=0).max() > 0.01
    assert (first.name, first.spd() is None) == (("frozen", True) if head == "linear" else ("attentive", False))
    other = encoder(2)
    with pytest.raises(VividError, match="takes features of the encoder"):
        fit_head(other, task, store, tmp_path, head=head)


def test_what_is_no_findings_is_refused(tmp_path):
    manifest = data_set(tmp_path / "data", space="organamnist-11")
    task = Task(name="organs", manifest=manifest, fields=manifest.fields)
    with pytest.raises(VividError, match="its classes exclude each other"):
        fit_head(encoder(1), task, FeatureStore(None), tmp_path)
    with pytest.raises(VividError, match="head='deep'"):
        fit_head(encoder(1), replace(task, fields=task.fields[:3]), FeatureStore(None), tmp_path, head="deep")
