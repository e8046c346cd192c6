"""Processes with unequally many batches iterate equally often."""

import pytest
import torch

from vivid_monai.engines import setup as in_step
from vivid_monai.engines.setup import InStep
from vivid_monai.engines.step import ValidationStep
from vivid_monai.errors import VividError

from .test_step import make_batch, make_engine, make_pretrainer


def padded(loader: list[dict], most: int, monkeypatch: pytest.MonkeyPatch) -> InStep:
    monkeypatch.setattr(in_step.idist, "all_reduce", lambda own, how: max(own, most))
    return InStep(loader)  # type: ignore[arg-type]


def test_alone_it_is_the_loader():
    loader = [make_batch(seed=1), make_batch(seed=2)]
    batches = InStep(loader)
    assert len(batches) == 2
    assert all(one is other for one, other in zip(batches, loader, strict=True))


def test_a_process_with_fewer_batches_repeats_its_last(monkeypatch):
    loader = [make_batch(seed=1), make_batch(seed=2) | {"skipped": ["a file"]}]
    batches = list(padded(loader, 4, monkeypatch))
    assert len(batches) == len(padded(loader, 4, monkeypatch)) == 4
    assert [batch.get("padding", False) for batch in batches] == [False, False, True, True]
    assert all(batch["image"] is loader[1]["image"] for batch in batches[1:])
    assert [len(batch["skipped"]) for batch in batches] == [0, 1, 0, 0]


def test_padding_runs_the_network_and_counts_for_nothing(monkeypatch):
    network = make_pretrainer()
    runs = []
    network.encoder.register_forward_hook(lambda *_: runs.append(1))
    outputs = [ValidationStep()(make_engine(network), batch) for batch in padded([make_batch()], 2, monkeypatch)]
    assert len(runs) == 4
    assert [len(output["states"]) for output in outputs] == [len(output["log_probs"]) for output in outputs] == [6, 0]
    torch.testing.assert_close(outputs[0]["blank"], outputs[1]["blank"])


def test_a_process_without_a_batch_is_told(monkeypatch):
    with pytest.raises(VividError, match="no validation image"):
        next(iter(padded([], 1, monkeypatch)))
