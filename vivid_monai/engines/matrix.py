"""A matrix of training runs: each in a process of its own, resumed where it stopped, never twice, never two at once."""

import json
import logging
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from filelock import FileLock, Timeout

from vivid_monai.engines.run import FIRST_FILES, saves
from vivid_monai.errors import VividError, find_cause, first_line
from vivid_monai.storage.files import whole_file

logger = logging.getLogger(__name__)

ASKED, DONE, LOG = "asked.json", "results.json", "log.txt"
BUSY = 75
"""Exit status of a process that found the run in the hands of another one."""
_RUN = """
import sys
from vivid_monai.engines.matrix import run_cell
sys.exit(run_cell(sys.argv[1], wait=sys.argv[2] == "wait"))
"""


@dataclass(frozen=True)
class Cell:
    """One run of a bundle's job.

    Attributes:
        name: what messages call it.
        folder: its ``output_dir``.
        configs: its config files, in the order in which MONAI merges them.
        knobs: what the command says besides.
        job: "training", "finetuning" or "evaluating".
    """

    name: str
    folder: str
    configs: tuple[str, ...]
    knobs: Mapping[str, Any]
    job: str = "training"

    @property
    def done(self) -> bool:
        """Whether it has run to its end."""
        return (Path(self.folder) / DONE).exists()

    def ask(self) -> None:
        """Note in its folder what is to be run there.

        Raises:
            VividError: something else has been run there.
        """
        path = Path(self.folder) / ASKED
        knobs = {name: str(value) for name, value in self.knobs.items()}
        asked = json.loads(json.dumps(asdict(self) | {"knobs": knobs}))
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            for name in ("configs", "job"):
                if before[name] != asked[name]:
                    raise VividError(_other(self, name, before[name], asked[name]))
            for name in [*knobs, *before["knobs"]]:
                if (was := before["knobs"].get(name)) != (now := knobs.get(name)):
                    raise VividError(_other(self, name, was, now))
        else:
            with whole_file(path) as part:
                part.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")


def _other(cell: Cell, what: str, was: Any, now: Any) -> str:
    return (
        f"{cell.folder} is of another matrix: {what} was {was} and is now {now}. Take the settings of before, or "
        "another folder (--out)"
    )


def run_cell(folder: str, *, wait: bool = False) -> int:
    """Run what :meth:`Cell.ask` noted in a folder, in this process; go on from its last save where there is one.

    The lock is this process's own, so it ends with it, however that ends.

    Args:
        wait: until another process that runs it has ended; otherwise nothing is done then, and `BUSY` returned.
    """
    path = Path(folder)
    lock = FileLock(path / "lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        return BUSY
    with lock:
        if (path / DONE).exists():
            return 0
        asked = json.loads((path / ASKED).read_text(encoding="utf-8"))
        knobs = {**asked["knobs"], "output_dir": folder}
        if asked["job"] != "evaluating" and saves(path / "checkpoints"):
            knobs["resume"] = "True"
        else:  # it stopped before its first save
            forget(path)
        options = [part for name, value in knobs.items() for part in (f"--{name}", value)]
        sys.argv = ["monai.bundle", "run", asked["job"], "--config_file", str(asked["configs"]), *options]
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    return 0


def forget(folder: Path) -> None:
    """Remove what shows that a folder belongs to a run: one that has saved nothing can only begin again."""
    for path in (folder / name for name in FIRST_FILES):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def run_matrix(cells: Sequence[Cell], *, processes: int = 1, gpus: int = 0) -> dict[str, str]:
    """Run cells that are not done, some at a time, on this machine; say how far it is after each.

    Args:
        cells: any; they are asked for by now.
        processes: how many at a time.
        gpus: as many at a time, each on a GPU of its own.

    Returns:
        Name → why, of those that failed; the others are done.
    """
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = seen.split(",") if seen else [str(i) for i in range(gpus)]
    if len(devices) < gpus:
        raise VividError(f"--gpus {gpus}, but CUDA_VISIBLE_DEVICES={seen}")
    n, slots = gpus or processes, SimpleQueue[dict[str, str]]()
    for i in range(n):
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // n))} if n > 1 else {}
        slots.put(threads | dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": devices[i]} if gpus else {}))

    def run(cell: Cell, wait: bool) -> tuple[int, str]:
        environment = slots.get()
        try:
            log = Path(cell.folder) / LOG
            command = [sys.executable, "-c", _RUN, cell.folder, "wait" if wait else "leave"]
            with log.open("a", encoding="utf-8") as told:
                status = subprocess.run(command, env=environment, stdout=told, stderr=told).returncode
            return status, "" if status in (0, BUSY) else why(log)
        finally:
            slots.put(environment)

    return _until_done(cells, run, n)


def why(log: Path) -> str:
    """What a run said last: its error of one line, or its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("vivid: ") for line in lines if line.startswith("vivid: ")]
    return f"{([*lines, *told] or ['it said nothing'])[-1]} ({log})"


def _until_done(cells: Sequence[Cell], run: Callable[[Cell, bool], tuple[int, str]], n: int) -> dict[str, str]:
    progress, failed = Progress(cells), dict[str, str]()
    left = [cell for cell in cells if not cell.done]
    for wait in (False, True):
        busy: list[Cell] = []
        pool = ThreadPoolExecutor(n)

        def one(cell: Cell, wait: bool = wait, busy: list[Cell] = busy) -> None:
            started = time.monotonic()
            status, told = run(cell, wait)
            if status == BUSY:
                busy.append(cell)
                logger.info("%s: another process runs it", cell.name)
            else:
                if not cell.done:
                    failed[cell.name] = told or f"ended with status {status} and without {DONE}"
                progress.tell(cell, time.monotonic() - started, failed.get(cell.name))

        try:
            for future in [pool.submit(one, cell) for cell in left]:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # what runs has been told to stop as well, and saves
            raise
        pool.shutdown()
        left = busy
    return failed


def run_submitted(cells: Sequence[Cell], folder: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """Run cells that are not done as jobs of Slurm, or as processes where there is no Slurm, by submitit.

    A job that is preempted or runs out of its time is queued again and goes on from its last save.

    Args:
        folder: where submitit keeps its logs.
        options: parameters of `submitit.AutoExecutor`, such as ``timeout_min``, ``gpus_per_node``, ``slurm_partition``;
            and ``cluster``.

    Returns:
        As :func:`run_matrix`.

    Raises:
        VividError: submitit is not installed, or does not take the options.
    """
    try:
        import submitit
    except ImportError as error:
        raise VividError("--launcher submitit needs submitit: pip install -c constraints.txt -e '.[slurm]'") from error
    parameters = dict(options)
    executor = submitit.AutoExecutor(folder / "%j", cluster=parameters.pop("cluster", None))
    try:
        executor.update_parameters(**parameters)
    except (TypeError, ValueError, NameError) as error:
        raise VividError(f"--slurm: submitit does not take these options: {first_line(error)}") from error

    def run(cell: Cell, wait: bool) -> tuple[int, str]:
        job = executor.submit(Submitted(cell.folder, wait))
        logger.info("%s: job %s, logs in %s", cell.name, job.job_id, job.paths.folder)
        if (error := job.exception()) is None:
            return job.result(), ""
        errors = re.findall(r"^[\w.]+: .+$", str(error), re.MULTILINE)  # submitit's text holds the whole traceback
        told = (errors or [first_line(error)])[-1].removeprefix("vivid_monai.errors.VividError: ")
        return 1, f"{told} (job {job.job_id})"

    return _until_done(cells, run, max(1, len(cells)))


@dataclass
class Submitted:
    """`run_cell` as submitit calls it, in a process of its own on another machine."""

    folder: str
    wait: bool

    def __call__(self) -> int:
        try:
            return run_cell(self.folder, wait=self.wait)
        except Exception as error:
            if (cause := find_cause(error)) is None:
                raise
            raise VividError(str(cause)) from None  # submitit keeps the text alone

    def checkpoint(self) -> Any:
        """What is queued instead of a job that has to stop."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Progress:
    """A line after each run: how many are done and left, and how long the rest may take."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._n, self._done = len(cells), sum(cell.done for cell in cells)
        self._started, self._ended, self._lock = time.monotonic(), 0, threading.Lock()
        if self._done:
            logger.info("%d of %d runs are done already", self._done, self._n)

    def tell(self, cell: Cell, seconds: float, failed: str | None) -> None:
        with self._lock:
            self._ended += 1
            left = self._n - self._done - self._ended
            minutes = (time.monotonic() - self._started) / self._ended * left / 60
            how = f"FAILED, {failed}" if failed else f"done in {seconds:.0f} s"
            after = f"; {left} left, about {minutes:.0f} min" if left else ""
            logger.info("[%d/%d] %s: %s%s", self._done + self._ended, self._n, cell.name, how, after)


def step_ends(folder: Path) -> list[float]:
    """When each step of a run ended, seconds of the clock, from what it wrote for TensorBoard; empty without that."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not (folder / "tensorboard").is_dir():
        return []
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    losses = [tag for tag in events.Tags()["scalars"] if "loss" in tag.lower()][:1]
    return [event.wall_time for tag in losses for event in events.Scalars(tag)]


def seconds_per_step(folder: Path) -> float:
    """The median over a run's steps, from :func:`step_ends`; validation and saves do not count.

    Raises:
        VividError: there are no two steps to be read.
    """
    times = step_ends(folder)
    if len(times) < 2:
        raise VividError(f"{folder}/tensorboard does not tell how long a step took, which --equal time needs")
    return statistics.median(after - before for before, after in pairwise(times))
