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

from vivid_monai.engines.history import History
from vivid_monai.errors import VividError

logger = logging.getLogger(__name__)
PATTERN = re.compile(r"^step_(\d+)\.pt$")
FIRST_FILES = ("initial_vit.safetensors", "config.json", "checkpoints")
"""Each of them shows that a folder belongs to a run."""


class TrainableWeights:
    """What training changes of a :class:`~vivid_monai.networks.pretrainer.Pretrainer`: no frozen teacher."""

    def __init__(self, pretrainer: Any) -> None:
        self._pretrainer = pretrainer

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._pretrainer.trainable_state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self._pretrainer.load_trainable_state_dict(state)


class RandomState:
    """The generators of every process. Data order and augmentation need none: they follow from seed and step alone."""

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        own = {"cpu": torch.get_rng_state(), "cuda": cuda}
        return {"ranks": idist.all_gather(own) if idist.get_world_size() > 1 else [own]}

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
        keys = [*self._settings, *(key for key in state if key not in self._settings)]
        changed = [key for key in keys if self._settings.get(key) != state.get(key)]
        if changed:
            details = "; ".join(f"{key} was {state.get(key)!r}, is {self._settings.get(key)!r}" for key in changed)
            raise VividError(
                f"cannot resume: {details}. Use the run's own settings, or start a new run without --resume"
            )


class _Saver(DiskSaver):
    """Writes whole files or none, and says what to do when the disk is full."""

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        try:
            super().__call__(checkpoint, filename, metadata)
        except (OSError, RuntimeError) as error:
            raise VividError(
                f"could not write the checkpoint {self.dirname / filename}: {error}. Free some space on that disk and "
                "continue with --resume True; the checkpoints before it are untouched"
            ) from error


class RunCheckpoint:
    """Trainer handler that saves everything a run needs to continue, and resumes from the newest save.

    Args:
        directory: where ``step_<iteration>.pt`` files are kept.
        save: name → object with ``state_dict`` / ``load_state_dict``; the trainer is added by itself.
        sampler: endless batch sampler with a ``start`` attribute (first step), see :mod:`vivid_monai.data.loader`.
        every: steps between two saves; there is one at the end of every epoch besides, after its validation.
        keep: how many saves are kept.
        resume: continue from the newest save in ``directory``.

    Attach it after the validation handler, so that what validation records is in the save of the same epoch.

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
        self.random_state = RandomState()
        self._save = {**save, "random_state": self.random_state}
        self._sampler, self._every, self._keep, self._resume = sampler, every, keep, resume

    def attach(self, engine: Engine) -> None:
        objects = {"trainer": engine, **self._save}
        if self._resume:
            self._load(objects)
            self._sampler.start = engine.state.iteration
        elif self.saves():
            raise _used(self.directory.parent)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._saved = engine.state.iteration if self._resume else None
        self._checkpoint = Checkpoint(
            objects,
            _Saver(str(self.directory), atomic=True, require_empty=False),
            n_saved=self._keep,
            filename_pattern="step_{global_step}.pt",
            global_step_transform=lambda *_: engine.state.iteration,
        )
        # Ignite drops old saves by its own list, which starts empty: tell it of those that are already there.
        self._checkpoint.load_state_dict({"_saved": [(step, path.name) for step, path in sorted(self.saves())]})
        engine.add_event_handler(Events.ITERATION_STARTED, lambda _: self.random_state.restore())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._within_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        """Save now, unless the save of this step is there; all processes together."""
        if self._saved != engine.state.iteration:
            self._checkpoint(engine)
            self._saved = engine.state.iteration

    def saves(self) -> list[tuple[int, Path]]:
        """(step, file) of the saves in the directory."""
        return saves(self.directory)

    def _within_epoch(self, engine: Engine) -> None:
        if engine.state.iteration % self._every == 0 and not ends_epoch(engine):
            self.save(engine)

    def _load(self, objects: Mapping[str, Any]) -> None:
        if not self.saves():
            raise _nothing_to_resume(self.directory)
        _, path = max(self.saves())
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise VividError(
                f"{path} cannot be read as a checkpoint ({error}); delete it and resume again from the save before it"
            ) from error
        if set(state) != set(objects):
            raise VividError(
                f"{path} is no checkpoint of this kind of run: it holds {sorted(state)}, not {sorted(objects)}"
            )
        for name in sorted(objects, key=lambda name: name != "settings"):  # the plainest error first
            objects[name].load_state_dict(state[name])


class Interrupted(VividError):
    """The run was asked to stop; its state is saved."""


class KeepRun:
    """Trainer handler: records the run, saves it, and stops it in good order.

    The first Ctrl-C (or SIGTERM) finishes the step, and at the end of an epoch its validation too; saves, and says how
    to continue. A second one kills. Of several processes, all stop after the same step, whichever of them was asked.

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
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda e: None if ends_epoch(e) else self._stop_if_asked(e)
        )
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._stop_if_asked)
        engine.add_event_handler(Events.COMPLETED, self._forget)
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
        # A signal reaches the processes at different steps; one that stopped alone would leave the others waiting.
        asked = idist.all_reduce(int(self._asked), "MAX") if idist.get_world_size() > 1 else self._asked
        if not asked:
            return
        self._checkpoint.save(engine)
        raise Interrupted(
            f"stopped after step {engine.state.iteration}; saved in {self._checkpoint.directory}. Continue with the "
            f"same command plus: --output_dir {self._checkpoint.directory.parent} --resume True"
        )

    def _raise(self, engine: Engine, error: Exception) -> None:
        self._forget()
        raise error


def ends_epoch(engine: Engine) -> bool:
    """Whether the trainer's last step was the last of an epoch: validation, record and save follow."""
    length = engine.state.epoch_length
    return bool(length) and engine.state.iteration % length == 0  # type: ignore[operator]


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
    if not checkpoints.is_dir():
        return []
    found = ((PATTERN.match(path.name), path) for path in checkpoints.iterdir())
    return [(int(match.group(1)), path) for match, path in found if match]


def start_run(output_dir: str | Path, *, resume: bool) -> None:
    """Refuse a folder that does not fit ``resume``, before anything is written; all processes together.

    Raises:
        VividError: a new run in the folder of another one, or nothing to resume.
    """
    folder = Path(output_dir)

    def wrong() -> VividError | None:
        if resume:
            return None if saves(folder / "checkpoints") else _nothing_to_resume(folder / "checkpoints")
        return _used(folder) if any((folder / name).exists() for name in FIRST_FILES) else None

    found = _as_first_process(wrong)
    if found is not None:
        raise found


def _nothing_to_resume(checkpoints: Path) -> VividError:
    return VividError(
        f"nothing to resume: no step_*.pt in {checkpoints}; give the --output_dir of a run that has saved, or start a "
        "new run, without --resume, in another folder"
    )


def _used(folder: Path) -> VividError:
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
        Path(parent).mkdir(parents=True, exist_ok=True)
        number = max((int(p.name) for p in Path(parent).iterdir() if p.name.isdecimal()), default=0) + 1
        while True:
            try:
                (Path(parent) / f"{number:03d}").mkdir()
                return os.fspath(Path(parent) / f"{number:03d}")
            except FileExistsError:  # another run was faster
                number += 1

    return str(_as_first_process(make))
