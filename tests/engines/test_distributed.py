"""Two processes are one: the same global batch gives the same gradient and the same counts."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vivid_monai.engines.step import PretrainStep

from .test_step import gradients, make_batch, make_engine, make_pretrainer

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, {folder!r})
from test_step import gradients, make_batch, make_engine, make_pretrainer
from vivid_monai.engines.step import PretrainStep

dist.init_process_group("gloo")
rank = dist.get_rank()
own = (slice(0, 5), slice(5, 6))[rank]
batch = {{k: v[own] for k, v in make_batch().items()}}
network = make_pretrainer(**{teacher!r})
if {compiled}:
    network.compile(backend="aot_eager")  # Inductor itself is tried in test_step
[output] = PretrainStep(clip_norm=None, micro_batch_size=2)(make_engine(DistributedDataParallel(network)), batch)
held = [p.to_local() if hasattr(p, "to_local") else p for p in network.teacher.lm.model.parameters()] if {shard} else []
result = {{"gradients": gradients(network), "output": output, "held": sum(p.numel() for p in held)}}
torch.save(result, f"{{sys.argv[1]}}/{{rank}}.pt")
dist.destroy_process_group()
"""
LM = {"kind": "lm", "layout": "short_slots"}


@pytest.mark.parametrize(
    ("teacher", "compiled", "shard"),
    [({}, False, False), (LM, False, False), (LM, True, False), (LM, False, True)],
    ids=["no LM", "LM", "compiled", "sharded"],
)
def test_two_gloo_processes_equal_one(tmp_path: Path, teacher: dict[str, Any], compiled: bool, shard: bool) -> None:
    script = tmp_path / "two.py"
    folder = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(folder=folder, teacher=teacher | {"shard": shard}, compiled=compiled, shard=shard))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", script, tmp_path]
    done = subprocess.run(
        launch, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]

    network = make_pretrainer(**teacher)
    [expected] = PretrainStep(clip_norm=None)(make_engine(network), make_batch())
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got["gradients"], gradients(network), atol=1e-5, rtol=1e-4)
        for name in ("loss", "nll", "penalty", "supervised", "images"):
            assert abs(got["output"][name] - expected[name]) < 1e-5, name
        if shard:
            whole = sum(p.numel() for p in network.teacher.lm.model.parameters())
            layers = sum(p.numel() for p in network.teacher.lm.model.model.layers.parameters())
            assert got["held"] == whole - layers // 2
