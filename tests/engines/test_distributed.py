"""Two processes are one: the same global batch gives the same gradient and the same counts."""

import os
import subprocess
import sys
from pathlib import Path

import torch

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
batch = {{k: v[rank * 3 : rank * 3 + 3] for k, v in make_batch().items()}}
network = make_pretrainer()
[output] = PretrainStep(clip_norm=None, micro_batch_size=2)(make_engine(DistributedDataParallel(network)), batch)
torch.save({{"gradients": gradients(network), "output": output}}, f"{{sys.argv[1]}}/{{rank}}.pt")
dist.destroy_process_group()
"""


def test_two_gloo_processes_equal_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parent)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", script, tmp_path]
    done = subprocess.run(
        launch, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]

    sys.path.insert(0, str(Path(__file__).parent))
    from test_step import gradients, make_batch, make_engine, make_pretrainer

    from vivid_monai.engines.step import PretrainStep

    network = make_pretrainer()
    [expected] = PretrainStep(clip_norm=None)(make_engine(network), make_batch())
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(got["gradients"], gradients(network), atol=1e-6, rtol=1e-5)
        for name in ("loss", "nll", "penalty", "supervised", "images"):
            assert abs(got["output"][name] - expected[name]) < 1e-5, name
