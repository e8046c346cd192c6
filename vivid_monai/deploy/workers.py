"""Processes that answer one image at a time, as ``vivid predict`` does, and that can be ended.

A decoder that hangs on a damaged file, or falls with it, cannot be stopped within a process: here it costs the process.
"""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch

from vivid_monai.deploy.inputs import Input, InputDataset
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.postprocessing import ANSWERED
from vivid_monai.deploy.predict import answers, reading
from vivid_monai.errors import VividError, one_line, printable
from vivid_monai.logs import quiet
from vivid_monai.storage.files import part_folder

START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""How processes start: without the threads, files and locks of the one that serves."""
_LOADED = 300  # seconds that a bundle may take to load
_NAME = 255  # characters of a name that go into a record


class Ended(Exception):
    """The process ended while it answered."""


@dataclass(frozen=True)
class Answer:
    """What became of one image, as in an :class:`~vivid_monai.deploy.predict.Entry`.

    Attributes:
        status: "answered", "not assessed" or "unreadable".
        reason: why it is not answered, in one line without any path.
        record: the JSON object of its UMS record, None where it is not answered.
    """

    status: str
    reason: str
    record: dict[str, Any] | None


@dataclass(frozen=True)
class Bundle:
    """What a worker loads: arguments of :class:`BundleModel` and overrides of tags."""

    folder: Path
    runtime: str | None = None
    accept: tuple[str, ...] = ()


class Worker:
    """One process, which is started anew where it has ended.

    Attributes:
        model: what the process has loaded, as plain values: name, version, fingerprint, fields with thresholds, ….
        broken: whether it could not be started again.
    """

    model: dict[str, Any]

    def __init__(self, bundle: Bundle, folder: Path, *, share: int = 1) -> None:
        """
        Args:
            folder: where the images lie that it is asked for.
            share: workers that share the processor's threads.
        """
        self._bundle, self._folder, self._share = bundle, folder, share
        self._process: Any = None
        self._pipe: Connection | None = None
        self.broken = False

    def start(self) -> None:
        """Start the process and wait until it has loaded the bundle.

        Raises:
            VividError: the bundle cannot be loaded.
        """
        self.broken = True
        self.end()
        context: Any = multiprocessing.get_context(START)
        self._pipe, other = context.Pipe()
        bundle = Bundle(self._bundle.folder.absolute(), self._bundle.runtime, self._bundle.accept)
        self._process = context.Process(target=_work, args=(other, bundle, self._folder, self._share), daemon=True)
        self._process.start()
        other.close()  # that it ends is then the end of what can be read
        try:
            told = self._pipe.recv() if self._pipe.poll(_LOADED) else "did not load in time"
        except EOFError:
            told = f"the process that loads it ended ({self._process.exitcode})"
        if isinstance(told, str):
            self.end()
            raise VividError(told if str(self._bundle.folder) in told else f"{self._bundle.folder}: {told}")
        self.model, self.broken = told, False

    def answer(self, file: str, name: str, *, seconds: float) -> Answer:
        """Answer an image; a process that has ended since is started first.

        Args:
            file: its name in the folder; it appears nowhere in the answer.
            name: what the record calls it, cut to 255 characters; bytes that are no UTF-8 are escaped.
            seconds: that it may take; the process is ended after them.

        Raises:
            TimeoutError: it took longer.
            Ended: the process ended, or failed in a way that no image should make it fail.
            VividError: the bundle cannot be loaded any more.
        """
        if self._process is None or not self._process.is_alive():
            self.start()
        assert self._pipe is not None
        try:
            self._pipe.send((file, printable(name)[:_NAME]))
            if not self._pipe.poll(seconds):
                raise TimeoutError
            told = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(1)
            raise Ended(f"exit code {self._process.exitcode}") from None
        except TimeoutError:
            self.end()
            raise
        if isinstance(told, str):
            raise Ended(told)
        return told

    def end(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def kill(self) -> None:
        """End the process of a worker that may be answering in another thread."""
        if (process := self._process) is not None:
            process.kill()


@contextmanager
def started(bundle: Bundle, n: int) -> Iterator[tuple[list[Worker], Path]]:
    """Yields n workers that have loaded a bundle, and the empty private folder where they look for images.

    At the end they are killed and the folder is removed. If this process is killed, they end; the folder is left, and
    removed by the next that starts.

    Raises:
        VividError: the bundle cannot be loaded.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(part_folder(Path(tempfile.gettempdir()) / "vivid-serve"))
        workers = [Worker(bundle, folder, share=n) for _ in range(n)]
        for one in workers:
            stack.callback(one.kill)
        workers[0].start()  # alone: what is wrong with the bundle is told once
        with ThreadPoolExecutor() as threads:
            list(threads.map(Worker.start, workers[1:]))
        yield workers, folder


def _work(pipe: Connection, bundle: Bundle, folder: Path, share: int) -> None:
    """The life of a process: tell what was loaded, or in a line why not; then answer each (file, name)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever asks it ends it
    torch.set_num_threads(max(1, torch.get_num_threads() // share))
    with quiet():  # a warning may quote the value of a tag
        try:
            model = BundleModel(bundle.folder, runtime=bundle.runtime)
            transform = reading(model, bundle.accept)
            os.chdir(folder)  # no message can hold its path
            pipe.send(_told(model))
        except (VividError, OSError) as error:
            pipe.send(one_line(error))
            return
        while True:
            try:
                file, name = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(answer(model, transform, file, name))
            except Exception as error:  # of no image that is known
                pipe.send(place(error))


def answer(model: BundleModel, transform: Any, file: str, name: str) -> Answer:
    """Answer one file with the functions of ``vivid predict``.

    Args:
        transform: of :func:`~vivid_monai.deploy.predict.reading`.
        file, name: as of :meth:`Worker.answer`.
    """
    items = InputDataset([Input(file, 0, 0)], transform, shape=model.preprocess.shape)
    ((entry, _),) = answers(model, [[items[0]]])
    if entry.status == ANSWERED:
        return Answer(entry.status, "", model.rules.record(name, entry.probabilities, entry.accepted))
    reason = entry.reason.removeprefix(f"{file}: ").replace(file, "the file")
    return Answer(entry.status, one_line(VividError(reason)), None)


def place(error: Exception) -> str:
    """Where a mistake of ours is; what an error says may be a patient's."""
    at = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}"


def _told(model: BundleModel) -> dict[str, Any]:
    names = ("field", "absent_below", "present_from", "unanswered")
    return {
        "name": model.name,
        "version": model.version,
        "fingerprint": model.fingerprint,
        "runtime": model.runtime,
        "label_space": model.rules.spec["label_space"],
        "fields": [{name: rule.get(name) for name in names} for rule in model.rules.spec["fields"]],
        "trained_on": model.trained_on,
        "preprocess": asdict(model.preprocess),
        "distance_limit": model.ood.limit,
    }
