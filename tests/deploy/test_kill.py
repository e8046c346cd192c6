"""A short piece of scripts/kill.py: killed once, commands go on to what they leave when nobody kills them."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import kill


@pytest.mark.parametrize(("kind", "number"), [("prepare", 2), ("predict", 1)], ids=["prepare conditions", "predict"])
def test_a_killed_command_goes_on_to_equal_results(kind, number, tmp_path, run, bundle_folder):
    inputs = kill.Inputs(tmp_path / "inputs")
    inputs.run, inputs.bundle = run, bundle_folder
    program = list(kill.PROGRAMS[kind](inputs))[number]
    kill.run_code("pass", cwd=tmp_path)  # starts the server of tests.processes
    reference, duration = kill.whole(program, tmp_path / "whole")
    draw = SimpleNamespace(uniform=lambda low, high: (low + high) / 2, random=lambda: 0.9)
    tries = (kill.killed(program, tmp_path / f"killed{i}", reference, duration, draw) for i in range(9))
    assert any(tries), "every try ended before it was killed"


def test_what_a_kill_spoils_is_told(tmp_path):
    whole, other = tmp_path / "whole", tmp_path / "other"
    whole.mkdir()
    results = {"run": {"created": "2000-01-01T00:00:00", "seconds": 1.5}, "auroc": 0.75}
    (whole / "results.json").write_text(json.dumps(results))
    torch.save({"loss": float("nan"), "weights": torch.ones(2)}, whole / "step_1.pt")
    (whole / "table.csv").write_text("a,b\n")
    shutil.copytree(whole, other)
    later = {"run": {"created": "2000-01-01T00:00:09", "seconds": 2.5}, "auroc": 0.75}
    (other / "results.json").write_text(json.dumps(later))
    reference = kill.contents(whole)
    assert kill.compare(reference, kill.contents(other)) == []
    (other / "results.json").write_text(json.dumps(later | {"auroc": 0.5}))
    torch.save({"loss": float("nan"), "weights": torch.zeros(2)}, other / "step_1.pt")
    (other / "table.csv").rename(other / ".table.csv.abcd_123.part")
    assert kill.compare(reference, kill.contents(other)) == [
        ".table.csv.abcd_123.part: stray",
        "results.json: another content",
        "step_1.pt: another content",
        "table.csv: missing",
    ]
