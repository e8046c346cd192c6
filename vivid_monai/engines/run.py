"""A run: its folder, its checkpoints, and its orderly end."""

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

from vivid_monai.errors import VividError, first_line
from vivid_monai.networks.checkpoint import load_pickled
from vivid_monai.storage.files import whole_file
from vivid_monai.storage.run_config import CONFIG, resume_config

logger = logging.getLogger(__name__)
PATTERN = re.compile(r"^step_(\d+)\.pt$")
FIRST_FILES = ("initial_vit.safetensors", CONFIG, "checkpoints")
"""Each of them shows that a folder belongs to a run."""
REPORT = "report.html"
"""What an evaluation writes last: one that was interrupted has none and begins again."""
_current: list[Path] = []
"""The folder of the run of this process, once it is known."""


class RandomState:
    """The generators of every process. Data order and augmentation need none: they follow from seed and step alone."""

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"ranks": idist.all_gather({"cpu": torch.get_rng_state(), "cuda": cuda})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if len(state["ranks"]) != idist.get_world_size():
            raise VividError(
                f"the checkpoint was written by {len(state['ranks'])} processes and this run has "
                f"{idist.get_world_size()}; resume with the same number"
            )
        self._pending = state["ranks"][idist.get_rank()]

    def restore(self) -> None:
        """Set the generators to the loaded state, once; done right before the first resumed step."""
        if self._pending is not None:
            torch.set_rng_state(self._pending["cpu"])
            if self._pending["cuda"]:
                torch.cuda.set_rng_state_all(self._pending["cuda"])
            self._pending = None


class Settings:
    """Settings that must not change between a run and its continuation; a difference is an error that names it."""

    def __init__(self, **settings: Any) -> None:
        self._settings = {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._settings)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pairs = {key: (state.get(key), self._settings.get(key)) for key in [*self._settings, *state]}
        if changed := [f"{key} was {was!r}, is {now!r}" for key, (was, now) in pairs.items() if was != now]:
            raise VividError(
                f"cannot resume: {'; '.join(changed)}. Use the run's own settings, or start a new run without --resume"
            )


class _Saver(DiskSaver):
    """Writes whole files or none, and says what to do when the disk is full."""

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        try:
            super().__call__(checkpoint, filename, metadata)
        except (VividError, RuntimeError) as error:
            raise VividError(
                f"could not write the checkpoint {self.dirname / filename}: {error.__cause__ or error}. Free some "
                "space on that disk and continue with --resume True; the checkpoints before it are untouched"
            ) from error

    def _save_func(self, checkpoint: Mapping, path: Path, func: Callable) -> None:
        with whole_file(path) as part, part.open("wb") as file:  # not by its name, which PyTorch would write into it
            func(checkpoint, file)


class Interrupted(VividError):
    """The run was asked to stop; its state is saved."""


class RunCheckpoint:
    """Trainer handler that saves all a run needs to continue, resumes from the newest save, and stops in good order.

    The first Ctrl-C (or SIGTERM) finishes the step, and at the end of an epoch its validation too; saves, and says how
    to continue. A second one kills. Of several processes, all stop after the same step, whichever of them was asked.

    Attach it last, so that what validation and history record is in the save of the same epoch.

    Args:
        directory: where ``step_<iteration>.pt`` files are kept.
        save: name → object with ``state_dict`` / ``load_state_dict``; the trainer is added by itself.
        sampler: endless batch sampler with a ``start`` attribute (first step), see :mod:`vivid_monai.data.loader`.
        every: steps between two saves; there is one at the end of every epoch besides, after its validation.
        keep: how many saves are kept.
        resume: continue from the newest save in ``directory``.

    Raises:
        VividError: on attaching: nothing to resume; a save that cannot be read or is of another run; or, without
            ``resume``, saves of another run in ``directory``, which would be taken for this one's.
    """

    def __init__(
        self,
        directory: str | Path,
        save: Mapping[str, Any],
        *,
        sampler: Any,
        every: int = 500,
        keep: int = 2,
        resume: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self._random_state = RandomState()
        self._save = {**save, "random_state": self._random_state}
        self._sampler, self._every, self._keep, self._resume = sampler, every, keep, resume
        self._asked = False
        self._previous: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        objects, found = {"trainer": engine, **self._save}, sorted(saves(self.directory))
        if self._resume:
            if not found:
                raise _nothing_to_resume(self.directory)
            _load(found[-1][1], objects)
            self._sampler.start = engine.state.iteration
        elif found:
            raise _used(self.directory.parent)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._saved = engine.state.iteration if self._resume else None
        self._checkpoint = Checkpoint(
            objects,
            _Saver(str(self.directory), require_empty=False),
            n_saved=self._keep,
            filename_pattern="step_{global_step}.pt",
            global_step_transform=lambda *_: engine.state.iteration,
        )
        # Ignite drops old saves by its own list, which starts empty: tell it of those that are already there.
        self._checkpoint.load_state_dict({"_saved": [(step, path.name) for step, path in found]})
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_STARTED, lambda _: self._random_state.restore())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end, due=True)
        engine.add_event_handler(Events.COMPLETED, self._forget)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._raise)

    def _end_step(self, engine: Engine) -> None:
        step = engine.state.iteration
        if step % engine.state.epoch_length:  # type: ignore[operator]  # the last of an epoch is validated first
            self._end(engine, due=step % self._every == 0)

    def _end(self, engine: Engine, *, due: bool) -> None:
        """Save where a save is due, and stop where one of the processes has been asked to; all of them together."""
        # A signal reaches the processes at different steps; one that stopped alone would leave the others waiting.
        asked = idist.all_reduce(int(self._asked), "MAX") if idist.get_world_size() > 1 else self._asked
        if (due or asked) and self._saved != engine.state.iteration:
            self._checkpoint(engine)
            self._saved = engine.state.iteration
        if asked:
            raise Interrupted(
                f"stopped after step {engine.state.iteration}; saved in {self.directory}. Continue with the same "
                f"command plus: --output_dir {self.directory.parent} --resume True"
            )

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():  # signals reach no other thread
            self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def _forget(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._forget()

    def _raise(self, engine: Engine, error: Exception) -> None:
        self._forget()
        raise error


def _load(path: Path, objects: Mapping[str, Any]) -> None:
    state = load_pickled(path, way_out="delete it and resume again from the save before it")
    if set(state) != set(objects):
        raise VividError(
            f"{path} is no checkpoint of this kind of run: it holds {sorted(state)}, not {sorted(objects)}"
        )
    for name in sorted(objects, key=lambda name: name != "settings"):  # the plainest error first
        try:
            objects[name].load_state_dict(state[name])
        except VividError:
            raise
        except ValueError as error:  # PyTorch's, of an optimiser with other groups
            raise VividError(f"cannot resume: the {name} of {path} is another: {first_line(error)}") from error


def run(trainer: Any) -> None:
    """Run ``trainer`` unless it was resumed at its very end, where Ignite would start over from step 0.

    Of several processes none goes on before all have ended: gloo's threads abort a process that exits while they still
    hold a tensor of its last reduction.
    """
    state = trainer.state
    if state.epoch_length and state.iteration >= state.max_epochs * state.epoch_length:
        logger.info("training is complete (%d steps); nothing left to train", state.iteration)
        return
    trainer.run()
    if dist.is_initialized():
        dist.barrier()


def saves(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, file) of the checkpoints in a folder."""
    found = ((PATTERN.match(path.name), path) for path in checkpoints.glob("*"))
    return [(int(match.group(1)), path) for match, path in found if match]


def start_run(output_dir: str | Path, *, resume: bool) -> None:
    """Refuse a folder that does not fit ``resume``, before anything is written; all processes together.

    Raises:
        VividError: a new run in the folder of another one; nothing to resume; settings that may not change have.
    """
    folder = Path(output_dir)

    def wrong() -> VividError | None:
        if not resume:
            return _used(folder) if any((folder / name).exists() for name in (*FIRST_FILES, REPORT)) else None
        if not saves(folder / "checkpoints"):
            return _nothing_to_resume(folder / "checkpoints")
        try:
            resume_config(folder)
        except VividError as error:
            return error
        return None

    if found := _as_first_process(wrong):
        raise found
    _current.append(folder)


def refuse_used(output_dir: str | Path) -> None:
    """Refuse the folder of a training or of a finished evaluation for an evaluation, before anything is computed.

    Raises:
        VividError: it is one; what to do.
    """
    folder = Path(output_dir)
    if any((folder / name).exists() for name in {*FIRST_FILES, REPORT} - {CONFIG}):
        raise _used(folder)


def way_on() -> str:
    """What to do after an interruption, in words."""
    if not _current:
        return "interrupted; the same command starts again, and takes what is in caches"
    folder = _current[-1]
    if saves(folder / "checkpoints"):
        return f"interrupted; continue with the same command plus: --output_dir {folder} --resume True"
    if any((folder / name).exists() for name in FIRST_FILES):
        return (
            f"interrupted before the first checkpoint; remove {folder}, or name another --output_dir, and start again"
        )
    return "interrupted before anything was trained; the same command starts again"


def _nothing_to_resume(checkpoints: Path) -> VividError:
    return VividError(
        f"nothing to resume: no step_*.pt in {checkpoints}; give the --output_dir of a run that has saved, or start a "
        "new run, without --resume, in another folder"
    )


def _used(folder: Path) -> VividError:
    if not any((folder / name).exists() for name in FIRST_FILES if name != CONFIG):
        return VividError(
            f"{folder} holds an evaluation already: give another --output_dir, or remove it; nothing was written"
        )
    if not saves(folder / "checkpoints"):
        return VividError(
            f"{folder} holds a run that has not saved yet; if it has ended, remove the folder, or give another "
            "--output_dir; nothing was written"
        )
    return VividError(
        f"{folder} holds a run already: continue it with --resume True, or give another --output_dir; nothing was "
        "written"
    )


def _as_first_process(decide: Callable[[], Any]) -> Any:
    """What ``decide`` returns in the first process, in every process."""
    decided = [decide() if idist.get_rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(decided, src=0)
    return decided[0]


@cache
def new_run_dir(parent: str | Path) -> str:
    """Create and return the next free folder ``<parent>/001``, ``002``, …; one folder for all processes of a run.

    A process gets one folder per parent, however often it asks: MONAI's tracking evaluates configs more than once.
    """

    def make() -> str:
        try:
            Path(parent).mkdir(parents=True, exist_ok=True)
            number = max((int(p.name) for p in Path(parent).iterdir() if p.name.isdecimal()), default=0) + 1
            while True:
                try:
                    (Path(parent) / f"{number:03d}").mkdir()
                    return os.fspath(Path(parent) / f"{number:03d}")
                except FileExistsError:  # another run was faster
                    number += 1
        except OSError as error:
            return f"{parent}: no folder of a run can be made here ({error.strerror}); name one with --output_dir"

    made = str(_as_first_process(make))
    if not Path(made).is_dir():
        raise VividError(made)
    return made
