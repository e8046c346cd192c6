"""The one family of errors that users are meant to read, and how they are shown."""

import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from types import TracebackType

_ODD = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_WHO = "vivid: "
LONGEST = 300
"""Characters of a message, with the name of who says it."""


class VividError(ValueError):
    """A mistake in an input, a file or a setting, told so that it can be mended.

    The message names the file, row or key and says the way out. Commands print it as one line without a traceback.
    """


def one_line(error: BaseException, most: int = LONGEST) -> str:
    """An error's message on one line of at most ``most`` characters: what is wrong first, the way out last."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    if len(text) <= most:
        return text
    end = most * 2 // 5
    return f"{text[: most - end - 3].rstrip()} … {text[-end:].lstrip()}"


def cut(text: str, most: int) -> str:
    """A text of at most ``most`` characters, for a message: the rest is an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def first_line(error: BaseException) -> str:
    """The first line of another library's message, at most 120 characters of it; its type where it says nothing."""
    return cut((str(error).strip() or type(error).__name__).splitlines()[0], 120)


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence about a word that is not known: the nearest one that is, or a full stop."""
    near = get_close_matches(word, list(known), 1)
    return f"; did you mean {prefix}{near[0]}?" if near else "."


def find_cause(error: BaseException | None, kind: type[BaseException] = VividError) -> BaseException | None:
    """The outermost error of a kind in the chain of causes of ``error``, if any."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def show_errors_plainly(way_on: Callable[[], str] = lambda: "interrupted; the same command starts again") -> None:
    """Print an uncaught :class:`VividError`, an error of the file system or an interruption as one line, also when the
    bundle wrapped it; leave other errors alone.

    Args:
        way_on: says of an interruption how to go on.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = find_cause(error) or find_cause(error, OSError)
        if cause and not isinstance(error, KeyboardInterrupt):  # which may come while another error is dealt with
            print(f"\n{_WHO}{one_line(cause, LONGEST - len(_WHO))}", file=sys.stderr, flush=True)
        elif find_cause(error, KeyboardInterrupt):
            print(f"\n{_WHO}{way_on()}", file=sys.stderr, flush=True)
        else:
            previous(kind, error, trace)

    sys.excepthook = hook


def printable(text: str) -> str:
    """A file's name, or a line with one, as text that every program reads: in one line, and in UTF-8.

    A byte that is not UTF-8 becomes ``\\xf6``, a line break ``\\n``.
    """
    return _ODD.sub(lambda found: _escaped(found[0]), text)


def _escaped(odd: str) -> str:
    code = ord(odd)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else odd.encode("unicode_escape").decode()
