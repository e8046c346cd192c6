"""Progress in a log file or a pipe: few plain lines; on a terminal, and switched off, it is tqdm's."""

import io
import re
import subprocess
import sys
import time

import pytest

from tests.bundle.conftest import ROOT, SMALL, bundle_command
from tests.processes import quiet
from vivid_monai import logs
from vivid_monai.logs import progress
from vivid_monai.prepare.phantoms import prepare

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_fifteen_seconds_and_a_last_one(clock):
    file = io.StringIO()
    with progress(total=60, desc="images", unit="image", file=file) as bar, progress(total=2, file=file) as below:
        for _ in range(60):
            clock[0] += 1
            bar.update()
            bar.clear()
            progress.write("said", file=file)
        below.update()
    lines = file.getvalue().splitlines()
    told = [line for line in lines if line.startswith("images")]
    assert [line.split(" [")[0] for line in told[:3]] == [
        "images:  25%, 15/60",
        "images:  50%, 30/60",
        "images:  75%, 45/60",
    ]
    assert told[-1].startswith("images: 100%, 60/60 [01:00<00:00,  1.00image/s]")
    assert lines.count("said") == 60
    assert not CONTROL.search(file.getvalue())


def test_what_is_short_or_not_left_says_nothing(clock):
    file = io.StringIO()
    for steps, leave in ((14, True), (0, True), (40, False)):
        for _ in progress(range(steps), file=file, leave=leave, desc=f"{steps}"):
            clock[0] += 1
    assert [line[:3] for line in file.getvalue().splitlines()] == ["40:"] * 2
    assert not CONTROL.search(file.getvalue())


def test_what_has_no_end_is_counted(clock):
    file = io.StringIO()
    for _ in progress(iter(range(20)), desc="files", unit="file", file=file):
        clock[0] += 1
    assert re.fullmatch(r"files: 15file \[00:15, .*\]\nfiles: 20file \[00:20, .*\]\n", file.getvalue())


def test_on_a_terminal_it_is_tqdm(clock):
    ours, theirs = Terminal(), Terminal()
    for kind, file in ((progress, ours), (logs.tqdm, theirs)):
        for _ in kind(range(3), desc="images", file=file, ncols=60):
            clock[0] += 1
    assert ours.getvalue() == theirs.getvalue()
    assert "\r" in ours.getvalue()


def test_it_can_be_switched_off():
    code = "from vivid_monai import logs; logs.EVERY = 0\nfor _ in logs.progress(range(3)): pass"
    for value, last in (("1", ""), ("", "100%, 3/3")):
        environment = {**quiet(), "TQDM_DISABLE": value}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert last in done.stderr
        assert bool(last) == bool(done.stderr)


OFTEN = "import runpy; from vivid_monai import logs; logs.EVERY = 0.0; runpy.run_module({!r}, {{}}, '__main__', True)"


def run_often(module: str, *arguments: object) -> str:
    """What a program writes into pipes where its bars write a line as often as they can."""
    command = [sys.executable, "-c", OFTEN.format(module), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, env=quiet(), check=False)
    written = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, written
    return written


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("phantoms"), n=SMALL["phantom_images"], size=SMALL["image_size"]).parent


def test_training_writes_plain_lines(tmp_path, phantoms):
    words = bundle_command(dataset_dir=phantoms, output_dir=tmp_path / "run", bundle_root=tmp_path)
    written = run_often(*words[1:])
    assert re.search(r"(?m)^pretraining: 100%, 8/8 ", written)
    assert not CONTROL.search(written)


def test_prediction_writes_plain_lines(tmp_path, phantoms):
    bundle = ROOT / "bundle" / "chest_phantom_vit_classification"
    images = sorted((phantoms / "images").iterdir())[:3]
    written = run_often("vivid_monai.cli", "predict", *images, "--bundle", bundle, "--out", tmp_path / "out")
    assert re.search(r"(?m)^images: 100%, (\d+)/\1 ", written)
    assert not CONTROL.search(written)
