"""Two processes are one: the same global batch gives the same gradient and the same counts; they stop together."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Events
from torch.nn.parallel import DistributedDataParallel

from tests.engines.test_run import make_trainer
from tests.engines.test_step import gradients, make_batch, make_engine, make_joint, make_normed, make_pretrainer
from tests.processes import run_module
from tests.tolerance import close, float32
from vivid_monai.engines.run import Interrupted, run, saves
from vivid_monai.engines.step import PretrainStep

LM = {"kind": "lm", "layout": "short_slots"}
WAYS: dict[str, dict[str, Any]] = {
    "no LM": {},
    "LM": LM,
    "compiled": LM,
    "sharded": {**LM, "shard": True},
    "two objectives, one over the whole batch": {},
    "two objectives, micro-batches": {},
}


def build(way: str) -> Any:
    if "objectives" in way:
        return make_joint("alike" if "whole" in way else "findings")
    network = make_pretrainer(**WAYS[way])
    if way == "compiled":
        network.compile(backend="aot_eager")  # Inductor itself is tried in test_step
    return network


def process(folder: Path) -> None:
    """What each of the two processes does: one step in every way, into a file; and a run that is stopped."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    own = (slice(0, 5), slice(5, 6))[rank]
    batch = {key: value[own] for key, value in make_batch().items()}
    batch["skipped"] = [None] * 4 * rank  # this process could not read four of its five images
    for way in WAYS:
        network = build(way)
        size = None if "whole" in way else 2
        [output] = PretrainStep(clip_norm=None, micro_batch_size=size)(
            make_engine(DistributedDataParallel(network)), batch
        )
        lm = network.objectives["states"].teacher.lm.model if way == "sharded" else torch.nn.Module()
        held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in lm.parameters())
        torch.save({"gradients": gradients(network), "output": output, "held": held}, folder / f"{way}-{rank}.pt")

    network, half = make_normed(), slice(3 * rank, 3 * rank + 3)
    engine, step = make_engine(DistributedDataParallel(network)), PretrainStep(clip_norm=None)
    norm, seen = network.encoder.patch_embedding.patch_embeddings[1], []
    for _ in range(2):
        step(engine, {key: value[half] for key, value in make_batch().items()})
        seen.append({"gradients": gradients(network), "mean": norm.running_mean.clone()})
    torch.save(seen, folder / f"norm-{rank}.pt")

    trainer, _, checkpoint = make_trainer(folder / "checkpoints", every=100)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: dist.barrier())
    at = 3 + rank
    trainer.add_event_handler(Events.ITERATION_STARTED(once=at), lambda: os.kill(os.getpid(), signal.SIGTERM))
    stopped = ""
    try:
        run(trainer)
    except Interrupted as error:
        stopped = str(error)
    dist.barrier()
    torch.save(
        {"stopped": stopped, "saves": [step for step, _ in saves(checkpoint.directory)]}, folder / f"stopped-{rank}.pt"
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that two processes leave."""
    folder = tmp_path_factory.mktemp("two")
    done = run_module(__name__, [folder], cwd=Path(__file__).parents[2], ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_two_gloo_processes_equal_one(two: Path, way: str) -> None:
    network = build(way) if "objectives" in way else make_pretrainer(**{**WAYS[way], "shard": False})
    [expected] = PretrainStep(clip_norm=None)(make_engine(network), make_batch())
    for rank in range(2):
        got = torch.load(two / f"{way}-{rank}.pt", weights_only=True)
        torch.testing.assert_close(got["gradients"], gradients(network), **close(depth=16, scale=7))
        assert got["output"] == pytest.approx(expected, abs=float32(depth=8), rel=float32(depth=8))
        if way == "sharded":
            lm = network.objectives["states"].teacher.lm.model
            whole, layers = (sum(p.numel() for p in part.parameters()) for part in (lm, lm.model.layers))
            assert got["held"] == whole - layers // 2


def test_a_batch_norm_in_two_processes_takes_two_parts_and_goes_on_from_the_firsts_mean(two: Path) -> None:
    network = make_normed()
    PretrainStep(clip_norm=None)(make_engine(network), make_batch())
    whole = gradients(network)
    PretrainStep(clip_norm=None, micro_batch_size=3)(make_engine(network), make_batch())
    ranks = [torch.load(two / f"norm-{rank}.pt", weights_only=True) for rank in range(2)]
    first = ranks[0][0]["mean"]
    for own, later in ranks:
        for seen in (own, later):
            torch.testing.assert_close(seen["gradients"], gradients(network), **close(depth=16, scale=7))
        torch.testing.assert_close(later["mean"], 0.9 * first + own["mean"], **close(depth=4))
    assert not torch.allclose(first, ranks[1][0]["mean"])
    assert not torch.allclose(whole, gradients(network), rtol=1e-2)
    assert (two / "stderr.txt").read_text().count("the network has batch norms") == 1


def test_a_signal_that_reaches_two_processes_at_different_steps_stops_both_after_the_same(two: Path) -> None:
    for rank in range(2):
        got = torch.load(two / f"stopped-{rank}.pt", weights_only=True)
        assert "stopped after step 3" in got["stopped"]
        assert got["saves"] == [3]


if __name__ == "__main__":
    process(Path(sys.argv[1]))
