"""Set-up of a run: messages and errors, determinism, several processes."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.distributed as dist
from monai.utils import set_determinism
from torch.utils.data import DataLoader

from vivid_monai.checks import check_options
from vivid_monai.engines.run import way_on
from vivid_monai.errors import VividError, show_errors_plainly
from vivid_monai.logs import show_messages


class InStep:
    """The batches of a loader, then its last one again with ``"padding": True`` while another process has batches.

    A sharded teacher is gathered from all processes whenever it runs, so all must run it equally often: a process that
    runs out of validation images would leave the others waiting for its part.

    Raises:
        VividError: while iterating: this process has no batch at all, and so nothing to repeat.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        self._length = int(idist.all_reduce(len(loader), "MAX"))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batch: dict[str, Any] | None = None
        for batch in self._loader:
            yield batch
        if batch is None:
            raise VividError("a process has no validation image: use fewer processes, or raise --val_images")
        for _ in range(self._length - len(self._loader)):
            yield {**batch, "skipped": [], "padding": True}


def setup(*, seed: int, distributed: bool = False, threads: int | None = None) -> None:
    """Prepare the process; the first item of a config's ``initialize``.

    Args:
        seed: seeds Python, NumPy and PyTorch through MONAI. Data order and augmentation take it by themselves.
        distributed: join the process group that ``torchrun`` describes: NCCL with one CUDA device per process where
            there is CUDA, else gloo.
        threads: CPU threads of PyTorch; ``None`` keeps its default.

    Raises:
        VividError: as :func:`~vivid_monai.checks.check_options`; ``distributed`` without ``torchrun``.
    """
    show_messages()
    show_errors_plainly(way_on)
    check_options()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is as orderly as Ctrl-C
    warnings.filterwarnings("ignore", message=".*no allow list.*")  # the bundle's own configs, read on the user's word
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # Ignite logs every error a second time
    if threads is not None:
        torch.set_num_threads(threads)
    if distributed:
        if "LOCAL_RANK" not in os.environ:
            raise VividError(
                "multi_gpu_train.json is for several processes: start it with "
                "torchrun --nproc_per_node=N -m monai.bundle run …"
            )
        if not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    set_determinism(seed=seed, use_deterministic_algorithms=None)


def evenly(datasets: Sequence[str], most: int) -> list[int]:
    """At most ``most`` images of each data set, evenly spread; all of them where they are not more.

    Args:
        datasets: of every image, the name of its data set.

    Returns:
        Places of the images, in order.
    """
    _, codes = np.unique(np.asarray(datasets, dtype=str), return_inverse=True)
    chosen: list[int] = []
    for code in range(codes.max(initial=-1) + 1):
        places = np.flatnonzero(codes == code)
        k = min(len(places), most)
        chosen += [int(places[i * len(places) // k]) for i in range(k)]
    return sorted(chosen)


def teardown() -> None:
    """Leave the process group, if there is one; the ``finalize`` of a config."""
    if dist.is_initialized():
        dist.destroy_process_group()


def device_of_process() -> torch.device:
    """CUDA device of this process (``LOCAL_RANK`` under ``torchrun``), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")
