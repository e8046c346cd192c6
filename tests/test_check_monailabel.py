"""What the tests of the MONAI Label app rest on."""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from check_monailabel import RESTS_ON, ROOT, fingerprint


def test_all_that_it_rests_on_is_there():
    assert all((ROOT / name).exists() for name in RESTS_ON)


def test_changes_with_contents_and_names_alone(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    app = tmp_path / "bundle" / "monailabel"
    (app / "__pycache__").mkdir(parents=True)
    (app / "main.py").write_text("one = 1\n")
    first = fingerprint(tmp_path)
    (app / "__pycache__" / "main.pyc").write_text("compiled")
    (tmp_path / "README.md").write_text("elsewhere")
    passed = tmp_path / "tests" / "monailabel" / "passed.sha256"
    passed.parent.mkdir(parents=True)
    passed.write_text(first)
    assert fingerprint(tmp_path) == first
    (app / "main.py").write_text("one = 2\n")
    second = fingerprint(tmp_path)
    (app / "main.py").rename(app / "other.py")
    assert len({first, second, fingerprint(tmp_path)}) == 3
