"""Programs run in processes of their own that need not import PyTorch and MONAI first, which takes eight seconds.

A server process imports them once; every program is a fork of it. What it prints, its exit code and its uncaught
errors are those of ``python -m MODULE`` or ``python -c CODE``.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

PRELOADED = ("torch", "monai.bundle", "monai.engines", "monai.handlers", "transformers", "tests.processes_preload")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(PRELOADED))


def run_module(
    module: str, arguments: Sequence[object] = (), *, cwd: Path, timeout: float = 300, ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """``python -m module arguments`` in the folder ``cwd``, to its end; stdout and stderr as text.

    Args:
        ranks: processes that find each other as torchrun's do; their output is joined, and one that fails ends all.
    """
    return _to_the_end(_module(module), [module, *map(str, arguments)], cwd, timeout, ranks, "")


def run_code(code: str, *, cwd: Path, timeout: float = 300, without: str = "") -> subprocess.CompletedProcess[str]:
    """``python -c code`` in the folder ``cwd``; ``without``: a package that it cannot import."""
    return _to_the_end(code, ["-c"], cwd, timeout, 1, without)


def start_module(
    module: str, arguments: Sequence[object] = (), *, cwd: Path, stderr: str | Path = os.devnull
) -> BaseProcess:
    """``python -m module arguments``, started; nobody reads its output."""
    return _start(_module(module), [module, *map(str, arguments)], cwd, quiet(), os.devnull, str(stderr), "")


def kill_once(
    process: BaseProcess, ready: Callable[[], bool], *, timeout: float = 300, number: int = signal.SIGKILL
) -> None:
    """Signal a process that was started as soon as something is so, and wait for its end; a failure where it ends
    before, or it never is so."""
    deadline = time.monotonic() + timeout
    while not ready():
        assert process.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid or 0, number)
    process.join()


def quiet() -> dict[str, str]:
    """The environment of a run: one thread, no warnings, no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}


def _module(name: str) -> str:
    return f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"


def _to_the_end(
    code: str, argv: list[str], cwd: Path, timeout: float, ranks: int, without: str
) -> subprocess.CompletedProcess[str]:
    env = quiet()
    with tempfile.TemporaryDirectory() as name:
        if ranks > 1:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            env = {**env, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        folder, running = Path(name), []
        for rank in range(ranks):
            own = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else env
            files = str(folder / f"out{rank}"), str(folder / f"err{rank}")
            running.append(_start(code, argv, cwd, own, *files, without))
        failed, left, deadline = 0, set(running), time.monotonic() + timeout
        while left:
            ended = wait([one.sentinel for one in left], max(0, deadline - time.monotonic()))
            left = {one for one in left if one.sentinel not in ended}
            failed = failed or next((one.exitcode for one in running if one not in left and one.exitcode), 0)
            if failed or not ended:
                for one in left:
                    one.kill()
                    one.join()
            if not ended:
                raise subprocess.TimeoutExpired(argv, timeout, _text(folder, "out"), _text(folder, "err"))
            left = set() if failed else left
        return subprocess.CompletedProcess(argv, failed, _text(folder, "out"), _text(folder, "err"))


def _text(folder: Path, name: str) -> str:
    return "".join(path.read_text(errors="replace") for path in sorted(folder.glob(f"{name}*")))


def _start(
    code: str, argv: list[str], cwd: Path, env: Mapping[str, str], out: str, err: str, without: str
) -> BaseProcess:
    process = _context.Process(target=_run, args=(code, argv, str(cwd), dict(env), out, err, without))
    process.start()
    return process


def _run(code: str, argv: list[str], cwd: str, env: dict[str, str], out: str, err: str, without: str) -> None:
    for path, stream in ((out, sys.__stdout__), (err, sys.__stderr__)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))  # the server may have had more
    multiprocessing.set_start_method(None, force=True)  # workers start as everywhere, not through a server of their own
    sys.argv = argv
    sys.path.insert(0, cwd)
    if without:
        for name in [name for name in sys.modules if name.split(".")[0] == without]:
            del sys.modules[name]
        sys.modules[without] = None  # type: ignore[assignment]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
