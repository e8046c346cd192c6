"""The notebooks are those of their scripts, without outputs, and the scripts run from start to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.make_notebooks import notebook_of

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_is_that_of_its_script(script):
    made = script.with_suffix(".ipynb")
    assert made.read_text(encoding="utf-8") == notebook_of(script), "run python scripts/make_notebooks.py"
    assert made.stat().st_size < 200_000
    cells = json.loads(made.read_text(encoding="utf-8"))["cells"]
    assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
    assert not any(cell.get("outputs") for cell in cells)


def test_no_notebook_is_without_a_script():
    assert len(SCRIPTS) == 3
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {path.stem for path in SCRIPTS}


WORDS = {
    "compare_encoders": ["ours - thumbnails, macro AUROC", "macro AUROC of each seed"],
    "my_table_to_a_served_model": ["fine-tuned - frozen, macro AUROC", "grey.png not assessed", '"status": "answered"'],
    "pretrain_with_an_llm_teacher": ["pretrained - untrained, macro AUROC", "language model - classifier, macro AUROC"],
}


@pytest.mark.parametrize("name", WORDS)
def test_notebook_runs(name, tmp_path):
    """One to two minutes each; leave them out with ``--deselect tests/test_notebooks.py::test_notebook_runs``."""
    # Not a fork of the tests' own server, as other programs here: that would wait minutes for joblib's idle processes.
    own = os.environ | {"TMPDIR": str(tmp_path)}  # where the notebook's folder goes, and is cleared
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for words in WORDS[name]:
        assert words in done.stdout
