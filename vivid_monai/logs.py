"""Messages for users: modules log to the logger ``vivid_monai``, programs show that on stderr."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

EVERY = 15.0
"""Seconds between two lines of a bar that is shown on no terminal."""


class progress(tqdm):
    """tqdm's bar on a terminal. Elsewhere, in a pipe or a log file, plain lines that end in a line break.

    There is a line every :data:`EVERY` seconds, none for what takes less, and a last one where the bar is left; no
    carriage return and no escape code, whatever is written, cleared or closed meanwhile. Arguments are tqdm's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._plain = not (kwargs.get("file") or sys.stderr).isatty()
        self._told, self._next = False, time.monotonic() + EVERY
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if not self._plain:
            return super().display(msg, pos)
        if due := time.monotonic() >= self._next:
            self._tell()
        return due

    def clear(self, nolock: bool = False) -> None:
        if not self._plain:
            super().clear(nolock)

    def close(self) -> None:
        if self._plain and not self.disable:
            if self._told and self.leave:
                self._tell()
            self.sp = None  # tqdm's printer: nothing is on a screen to be taken away
        super().close()

    def _tell(self) -> None:
        self._told, self._next = True, time.monotonic() + EVERY
        said = {**self.format_dict, "bar_format": "{l_bar}{r_bar}" if self.total else None}
        self.fp.write(self.format_meter(**said).replace("||", ",", 1).strip() + "\n")
        self.fp.flush()


def plain_bars() -> None:
    """Where stderr is no terminal, let transformers and its hub draw no bars of their own."""
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


class _Stderr(logging.Handler):
    """Plain lines on stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        progress.write(self.format(record), file=sys.stderr)


def show_messages() -> None:
    """Show what the package logs, from INFO on, as plain lines on stderr; done once however often it is called."""
    logger = logging.getLogger("vivid_monai")
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        logger.addHandler(_Stderr())
        logger.setLevel(logging.INFO)
        logger.propagate = False  # MONAI's bundle has handlers of its own at the root, which would repeat the lines


@contextmanager
def quiet() -> Iterator[None]:
    """In the block, nothing in the whole process logs or warns."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
