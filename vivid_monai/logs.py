"""Messages for users: modules log to the logger ``vivid_monai``, programs show that on stderr."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Stderr(logging.Handler):
    """Plain lines on stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


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
