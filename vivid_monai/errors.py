"""The one family of errors that users are meant to read, and how they are shown."""

import re
import sys
from types import TracebackType

_ODD = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class VividError(ValueError):
    """A mistake in an input, a file or a setting, told so that it can be mended.

    The message names the file, row or key and says the way out. Commands print it as one line without a traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def find_cause(error: BaseException | None) -> VividError | None:
    """The outermost :class:`VividError` in the chain of causes of ``error``, if any."""
    while error is not None and not isinstance(error, VividError):
        error = error.__cause__ or error.__context__
    return error


def show_errors_plainly() -> None:
    """Print an uncaught :class:`VividError` as one line, also when the bundle wrapped it; leave other errors alone."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = find_cause(error)
        if cause is None:
            previous(kind, error, trace)
        else:
            print(f"\nvivid: {cause}", file=sys.stderr, flush=True)

    sys.excepthook = hook


def printable(text: str) -> str:
    """A file's name, or a line with one, as text that every program reads: in one line, and in UTF-8.

    A byte that is not UTF-8 becomes ``\\xf6``, a line break ``\\n``.
    """
    return _ODD.sub(lambda found: _escaped(found[0]), text)


def _escaped(odd: str) -> str:
    code = ord(odd)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else odd.encode("unicode_escape").decode()
