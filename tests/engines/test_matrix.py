"""Runs of a matrix: each once, resumed where it stopped, alone in its folder; failures told, the others finished."""

import logging
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from vivid_monai.engines import matrix
from vivid_monai.engines.matrix import BUSY, Cell, run_cell, run_matrix, run_submitted
from vivid_monai.errors import VividError

WORKER = """
import os, pathlib, sys
from filelock import FileLock, Timeout
folder = pathlib.Path(sys.argv[1])
try:
    lock = FileLock(folder / "lock").acquire(timeout=-1 if sys.argv[2] == "wait" else 0)
except Timeout:
    sys.exit(75)
if (folder / "results.json").exists():
    sys.exit(0)
with (folder / "started").open("a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "") + "|" + os.environ["OMP_NUM_THREADS"] + "\\n")
print("some progress")
if "bad" in folder.name:
    sys.exit("\\nvivid: the disk is full\\n")
(folder / "results.json").write_text("{}")
"""


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Function that makes cells of these names, whose runs take no time."""
    monkeypatch.setattr(matrix, "_RUN", WORKER)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(logging.getLogger("vivid_monai"), "propagate", True)

    def make(*names, **knobs):
        made = [Cell(name, str(tmp_path / name), ("a.json",), knobs) for name in names]
        for cell in made:
            cell.ask()
        return made

    return make


def started(cell):
    return Path(cell.folder, "started").read_text().splitlines()


def test_a_failure_is_told_and_the_others_go_on(cells, caplog):
    caplog.set_level("INFO", "vivid_monai")
    made = cells("first", "bad one", "last")
    failed = run_matrix(made, processes=2)
    assert list(failed) == ["bad one"]
    assert failed["bad one"].startswith("the disk is full (")
    assert [cell.done for cell in made] == [True, False, True]
    lines = [line for line in caplog.messages if line.startswith("[")]
    assert [line[:5] for line in lines] == ["[1/3]", "[2/3]", "[3/3]"]
    assert "2 left, about 0 min" in lines[0]
    assert "left" not in lines[2]
    assert sum("bad one: FAILED, the disk is full" in line for line in lines) == 1


def test_what_is_done_is_not_repeated_and_what_failed_is_tried_again(cells):
    made = cells("first", "bad one")
    run_matrix(made)
    run_matrix(made)
    assert [len(started(cell)) for cell in made] == [1, 2]


def test_each_gpu_has_one_run_at_a_time(cells, monkeypatch):
    made = cells(*"abcd")
    assert run_matrix(made, gpus=2) == {}
    assert {line.split("|")[0] for cell in made for line in started(cell)} <= {"0", "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    run_matrix(cells("e"), gpus=1)
    assert started(Cell("e", str(Path(made[0].folder).parent / "e"), (), {})) == ["3|1"]
    with pytest.raises(VividError, match="--gpus 3, but CUDA_VISIBLE_DEVICES=3,5"):
        run_matrix(made, gpus=3)


def test_two_matrices_on_one_folder_do_not_run_a_cell_twice(cells, caplog, tmp_path):
    caplog.set_level("INFO", "vivid_monai")
    shared, free = cells("shared", "free")
    other = FileLock(Path(shared.folder, "lock"), thread_local=False)
    other.acquire()

    def finish():
        while not free.done:  # it waits for nothing that could be done meanwhile
            time.sleep(0.01)
        Path(shared.folder, "results.json").write_text("{}")
        other.release()

    thread = threading.Thread(target=finish)
    thread.start()
    assert run_matrix([shared, free]) == {}
    thread.join()
    assert "shared: another process runs it" in caplog.messages
    assert not Path(shared.folder, "started").exists()


def test_a_folder_of_another_matrix_is_refused(cells, tmp_path):
    cells("one", max_epochs=4)
    cells("one", max_epochs=4)
    for knobs, told in (({"max_epochs": 8}, "max_epochs was 4 and is now 8"), ({}, "max_epochs was 4 and is now None")):
        with pytest.raises(VividError, match=told):
            cells("one", **knobs)
    with pytest.raises(VividError, match="configs was"):
        Cell("one", str(tmp_path / "one"), ("b.json",), {"max_epochs": 4}).ask()


@pytest.fixture
def bundle(monkeypatch):
    """What is asked of monai.bundle in this process; nothing is run."""
    asked = []
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(matrix.runpy, "run_module", lambda module, **_: asked.append([module, *sys.argv[1:]]))
    return asked


@pytest.mark.parametrize("job", ["training", "finetuning"])
def test_a_run_that_has_saved_resumes_and_one_that_has_not_starts_anew(tmp_path, bundle, job):
    cell = Cell("one", str(tmp_path / "one"), ("a.json", "b.json"), {"seed": 3, "pool": None}, job)
    cell.ask()
    for name in ("config.json", "initial_vit.safetensors"):
        Path(cell.folder, name).write_text("")
    assert run_cell(cell.folder) == 0
    options = ["--config_file", "['a.json', 'b.json']", "--seed", "3", "--pool", "None", "--output_dir", cell.folder]
    assert bundle[0] == ["monai.bundle", "run", job, *options]
    assert not Path(cell.folder, "config.json").exists()
    Path(cell.folder, "checkpoints").mkdir()
    Path(cell.folder, "checkpoints", "step_4.pt").write_text("")
    Path(cell.folder, "config.json").write_text("")
    run_cell(cell.folder)
    assert bundle[1] == ["monai.bundle", "run", job, *options, "--resume", "True"]
    assert Path(cell.folder, "config.json").exists()


def test_nothing_runs_where_it_is_done_or_another_process_has_it(tmp_path, bundle):
    cell = Cell("one", str(tmp_path / "one"), ("a.json",), {})
    cell.ask()
    with FileLock(Path(cell.folder, "lock")):
        assert run_cell(cell.folder) == BUSY
    Path(cell.folder, "results.json").write_text("{}")
    assert run_cell(cell.folder) == 0
    assert bundle == []


def test_submitit_runs_what_is_not_done_and_tells_what_failed(tmp_path, monkeypatch):
    pytest.importorskip("submitit")

    def bundle(*_, **__):
        if "bad" in sys.argv[-1]:
            try:
                raise VividError("the disk is full")
            except VividError as error:
                raise RuntimeError("Failed to run the workflow") from error
        Path(sys.argv[-1], "results.json").write_text("{}")

    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(matrix.runpy, "run_module", bundle)
    made = [Cell(name, str(tmp_path / name), ("a.json",), {}) for name in ("first", "bad one")]
    for cell in made:
        cell.ask()
    failed = run_submitted(made, tmp_path / "jobs", {"cluster": "debug", "timeout_min": 5})
    assert made[0].done
    assert list(failed) == ["bad one"]
    assert failed["bad one"].startswith("the disk is full (job ")


def test_submitit_runs_it_in_a_process_of_its_own_and_can_queue_it_again(tmp_path):
    submitit = pytest.importorskip("submitit")
    cell = Cell("one", str(tmp_path / "one"), ("nowhere.json",), {})
    cell.ask()
    failed = run_submitted([cell], tmp_path / "jobs", {"cluster": "local", "timeout_min": 5})
    assert "nowhere.json" in failed["one"]
    again = matrix.Submitted(cell.folder, False).checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    with pytest.raises(VividError, match="--slurm: submitit does not take these options"):
        run_submitted([cell], tmp_path / "jobs", {"cluster": "local", "colour": "red"})


def test_without_submitit_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(VividError, match=r"pip install .*\[slurm\]"):
        run_submitted([], tmp_path, {})


def test_seconds_of_a_step_are_the_median(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with pytest.raises(VividError, match="does not tell how long a step took"):
        matrix.seconds_per_step(tmp_path)
    writer, clock = SummaryWriter(tmp_path / "tensorboard"), 100.0
    for step, seconds in enumerate([0.5, 0.5, 30.0, 0.5]):  # a validation after the third
        clock += seconds
        writer.add_scalar("Training_Loss", 1.0, step, walltime=clock)
    writer.close()
    assert matrix.seconds_per_step(tmp_path) == 0.5
