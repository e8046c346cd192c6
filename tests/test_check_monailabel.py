"""What the tests of the MONAI Label app rest on."""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from check_monailabel import ROOT, fingerprint, imported


def test_rests_on_all_that_makes_a_bundle():
    files = imported(ROOT)
    assert {"tests/monailabel/server.py", "tests/deploy/conftest.py", "tests/conftest.py"} <= files
    made_of = (
        "deploy/bundle",
        "deploy/ood",
        "networks/vit",
        "networks/classifier",
        "images/preprocess",
        "images/dicom",
    )
    assert {f"vivid_monai/{name}.py" for name in made_of} <= files
    assert "tests/deploy/test_bundle.py" not in files
    assert all((ROOT / name).is_file() for name in files)


def test_changes_with_a_file_that_is_imported(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name, text in {
        "tests/monailabel/test_it.py": "def test():\n    from vivid_monai import network\n",
        "vivid_monai/network.py": "from vivid_monai.below import one\n",
        "vivid_monai/below.py": "one = 1\n",
        "vivid_monai/other.py": "two = 2\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    first = fingerprint(tmp_path)
    (tmp_path / "vivid_monai" / "other.py").write_text("two = 3\n")
    assert fingerprint(tmp_path) == first
    (tmp_path / "vivid_monai" / "below.py").write_text("one = 2\n")
    assert fingerprint(tmp_path) != first


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
