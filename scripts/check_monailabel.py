"""Run the tests of the MONAI Label app (bundle/monailabel), in full: the stage for when its files change.

    python scripts/check_monailabel.py --env DIR              # makes MONAI Label's environment there, if it is missing
    python scripts/check_monailabel.py --env DIR --orthanc    # and installs Orthanc by apt-get, if it is missing
    python scripts/check_monailabel.py --env DIR --orthanc --if-changed    # nothing, if nothing it rests on has changed

Making the environment takes about five minutes and 4 GB. Where the system allows it (unshare of util-linux), the tests
run in a network namespace of their own: nothing can be reached from it, nor reach into it. Without --orthanc, the tests
of the PACS are skipped where there is no Orthanc; with it, a skipped test is a failure, and a full pass is noted in
tests/monailabel/passed.sha256: a hash of the app, its tests and every file of this repository that they import.
"""

import argparse
import ast
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.monailabel.orthanc import missing

ROOT = Path(__file__).parents[1]
REQUIREMENTS = Path("bundle/monailabel/requirements.txt")
ALONE = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
PASSED = ROOT / "tests" / "monailabel" / "passed.sha256"
APP, TESTS = "bundle/monailabel", "tests/monailabel"
RESTS_ON = (APP, TESTS, "scripts/check_monailabel.py", "vivid_monai/*.json", "vivid_monai/*.j2")
"""What the tests use beside the Python files that they import: :func:`imported`."""
STUB = '''"""In place of a torchvision that does not go with the PyTorch here: names that are only imported."""


def make_grid(*_, **__):
    raise NotImplementedError("no torchvision")


save_image = make_grid
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, required=True, help="folder of MONAI Label's environment")
    parser.add_argument("--orthanc", action="store_true", help="install Orthanc if it is missing (needs root)")
    parser.add_argument("--if-changed", action="store_true", help="only if what it rests on changed since it passed")
    parser.add_argument("pytest", nargs="*", help="more arguments for pytest, after --")
    args = parser.parse_args()
    state = fingerprint(ROOT)
    if args.if_changed and PASSED.exists() and PASSED.read_text().strip() == state:
        print("unchanged since it last passed: the MONAI Label app, its tests and what a bundle is made of")
        return 0
    python = args.env.absolute() / "bin" / "python"
    if not python.exists():
        make_environment(args.env)
    if args.orthanc and missing():
        subprocess.run(["apt-get", "install", "-y", "orthanc", "orthanc-dicomweb"], check=True)
    command = [sys.executable, "-m", "pytest", "-m", "monailabel", "tests/monailabel", *args.pytest]
    if can_be_alone():
        command = [*ALONE, *command]
    else:
        print(
            "note: no network namespace of its own; Orthanc listens on every interface, and accepts this machine only"
        )
    environment = {**os.environ, "VIVID_MONAILABEL_PYTHON": str(python)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED") and "no real data" not in line]
    if args.orthanc and skipped:
        print("failed: with --orthanc nothing may be skipped but for want of real data")
        return 1
    if args.orthanc and not args.pytest and not done.returncode:
        if fingerprint(ROOT) == state:
            PASSED.write_text(state + "\n")
        else:
            print("note: passed, but files changed meanwhile; which of their states passed is not known")
    return done.returncode


def fingerprint(root: Path) -> str:
    """SHA-256 over names and contents of the files that the tests rest on, those that git tracks or would track."""
    rests_on = [*RESTS_ON, *imported(root)]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *rests_on]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    digest = hashlib.sha256()
    for name in sorted(set(filter(None, listed))):
        path = root / name
        if path.is_file() and path.name != PASSED.name:
            digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def imported(root: Path) -> set[str]:
    """The files of this repository that the tests import, directly or through others: what makes a bundle included."""
    found: set[str] = set()
    waiting = [*(root / TESTS).glob("*.py"), root / "tests" / "conftest.py"]
    while waiting:
        path = waiting.pop()
        name = str(path.relative_to(root))
        if name in found or not path.is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
            for module in modules:
                place = root / module.replace(".", "/")
                waiting += [place.with_name(f"{place.name}.py"), place / "__init__.py"]
    return found


def make_environment(folder: Path) -> None:
    """The command of bundle/monailabel/README.md; and a way round where torchvision cannot be imported."""
    venv.create(folder, with_pip=True)
    python = str(folder.absolute() / "bin" / "python")
    try:
        subprocess.run([python, "-m", "pip", "install", "-r", str(REQUIREMENTS)], cwd=ROOT, check=True)
        if subprocess.run([python, "-c", "import torchvision"], capture_output=True).returncode:
            print("note: torchvision does not go with the PyTorch here; tests run without it")
            subprocess.run([python, "-m", "pip", "uninstall", "-y", "torchvision", "sam2"], check=True)
            where = subprocess.run(
                [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            stub = Path(where) / "torchvision"
            stub.mkdir(exist_ok=True)
            (stub / "__init__.py").write_text("")
            (stub / "utils.py").write_text(STUB)
    except BaseException:
        shutil.rmtree(folder)  # half an environment would be taken for a whole one
        raise


def can_be_alone() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
