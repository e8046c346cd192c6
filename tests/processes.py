"""Python modules run in processes of their own that need not import PyTorch and MONAI first, which takes eight seconds.

A server process imports them once; every run is a fork of it. What a run prints, its exit code and its uncaught errors
are those of ``python -m MODULE``.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = ("torch", "monai.bundle", "monai.engines", "monai.handlers", "transformers", "tests.processes_preload")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(PRELOADED))


def run_module(
    module: str, arguments: Sequence[object], *, cwd: Path, env: Mapping[str, str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """``python -m module arguments`` in the folder ``cwd``, to its end; stdout and stderr as text."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "stdout", Path(folder) / "stderr"
        process = _context.Process(target=_run, args=(command[3:], module, str(cwd), dict(env), str(out), str(err)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout, out.read_text(), err.read_text())
        said, complained = (path.read_text(errors="replace") if path.exists() else "" for path in (out, err))
        return subprocess.CompletedProcess(command, process.exitcode or 0, said, complained)


def _run(arguments: list[str], module: str, cwd: str, env: dict[str, str], out: str, err: str) -> None:
    for path, stream in ((out, sys.__stdout__), (err, sys.__stderr__)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    sys.path.insert(0, cwd)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
