"""A short piece of every campaign of scripts/fuzz.py."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


def test_a_short_campaign_finds_nothing():
    words = [sys.executable, str(SCRIPT), "--minutes", "2", "--seed", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    tried = {line.split(":")[0].strip() for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"tables", "long_tables", "mappings", "records", "images", "checkpoints", "bundles"} <= tried
