"""Run the numeric tests (marker ``numeric``) with every kind of kernel that this processor has, on one and two threads.

    python scripts/check_numerics.py

PyTorch and oneDNN choose their kernels by the processor, and a sum in another order ends in another digit. A tolerance
that was right by luck on one machine fails here.
"""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
KERNELS = {"DEFAULT": ("default", "SSE41"), "AVX2": ("avx2", "AVX2"), "AVX512": ("avx512", "AVX512_CORE")}
"""What ``torch.backends.cpu.get_cpu_capability`` calls it → ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA."""


def main() -> int:
    names = list(KERNELS)
    best = torch.backends.cpu.get_cpu_capability()
    there = names[: names.index(best) + 1] if best in names else names[:1]
    failed = 0
    for name, threads in itertools.product(there, (1, 2)):
        if (name, threads) == (there[-1], 1):
            continue  # the suite itself runs so
        aten, onednn = KERNELS[name]
        chosen = {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "OMP_NUM_THREADS": str(threads)}
        started = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "-q", "-m", "numeric", "-p", "no:cacheprovider"]
        command += ["-n", "2"] if threads == 1 else ["-p", "no:xdist"]  # workers of xdist have one thread each
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **chosen}, capture_output=True, text=True)
        failed += done.returncode != 0
        said = done.stdout if done.returncode else done.stdout.strip().splitlines()[-1]
        print(f"{aten}, {threads} threads, {time.perf_counter() - started:.0f} s: {said}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
