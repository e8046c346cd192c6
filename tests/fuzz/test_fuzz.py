"""A short piece of every campaign of scripts/fuzz.py."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


def test_a_short_campaign_finds_nothing():
    words = [sys.executable, str(SCRIPT), "--minutes", "0.2", "--seed", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "tables" in done.stdout
