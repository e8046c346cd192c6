"""Running a trainer to its end, to its interruption, or not at all when it has already been there."""

import os
import signal
import sys
import threading
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from ignite.engine import Engine, Events

from vivid_monai.engines.checkpoint import RunCheckpoint
from vivid_monai.engines.history import History
from vivid_monai.errors import VividError


class Interrupted(VividError):
    """The run was asked to stop; its state is saved."""


class KeepRun:
    """Trainer handler: records the run, saves it, and stops it in good order.

    The first Ctrl-C (or SIGTERM) finishes the step, saves, and says how to go on; a second one kills.

    Args:
        checkpoint: what saves and resumes.
        history: what is recorded; before the save, so that the save holds it.
    """

    def __init__(self, *, checkpoint: RunCheckpoint, history: History | None = None) -> None:
        self._checkpoint = checkpoint
        self._history = history
        self._asked = False
        self._previous: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        if self._history is not None:
            self._history.attach(engine)
        self._checkpoint.attach(engine)
        engine.add_event_handler(Events.STARTED, lambda _: self._listen())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_asked)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._forget())
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._raise)

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals reach the main thread only, and whoever runs us in another one stops us its own way
        self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def _forget(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._forget()

    def _stop_if_asked(self, engine: Engine) -> None:
        if not self._asked:
            return
        self._checkpoint.save_now(engine)
        raise Interrupted(
            f"stopped after step {engine.state.iteration}; saved in {self._checkpoint.directory}. Go on with the same "
            f"command plus: --output_dir {self._checkpoint.directory.parent} --resume True"
        )

    def _raise(self, engine: Engine, error: Exception) -> None:
        self._forget()
        raise error


def run(trainer: Any) -> None:
    """Run ``trainer`` unless it was resumed at its very end, where Ignite would start over from step 0.

    Of several processes none goes on before all have ended: gloo's threads abort a process that exits while they still
    hold a tensor of its last reduction.
    """
    state = trainer.state
    if state.epoch_length and state.iteration >= state.max_epochs * state.epoch_length:
        print(f"training is complete ({state.iteration} steps); nothing left to train", file=sys.stderr)
        return
    trainer.run()
    if dist.is_initialized():
        dist.barrier()


@cache
def new_run_dir(parent: str | Path) -> str:
    """Create and return the next free folder ``<parent>/001``, ``002``, …; one folder for all processes of a run.

    A process gets one folder per parent, however often it asks: MONAI's tracking evaluates configs more than once.
    """
    chosen: list[str | None] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        Path(parent).mkdir(parents=True, exist_ok=True)
        number = max((int(p.name) for p in Path(parent).iterdir() if p.name.isdecimal()), default=0) + 1
        while chosen[0] is None:
            try:
                (Path(parent) / f"{number:03d}").mkdir()
                chosen[0] = os.fspath(Path(parent) / f"{number:03d}")
            except FileExistsError:  # another run was faster
                number += 1
    if dist.is_initialized():
        dist.broadcast_object_list(chosen, src=0)
    return str(chosen[0])
