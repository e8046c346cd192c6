"""The console command ``vivid``: everything that is not a bundle workflow.

Training, evaluation and inference run through ``python -m monai.bundle run``. What comes before and after them, such as
preparing a data set or checking records, is a subcommand here (:mod:`vivid_monai.commands`).
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from itertools import takewhile
from typing import Any, NoReturn

from vivid_monai import __version__
from vivid_monai.errors import LONGEST, VividError, did_you_mean, one_line
from vivid_monai.logs import show_messages

COMMANDS = {
    "init": ("init", "lay the configs of training and evaluation in a folder"),
    "prepare": ("prepare", "make a manifest from a data set"),
    "phantom": ("records", "write chest phantoms, with manifest and reports"),
    "verify": ("records", "check UMS records"),
    "labels": ("records", "list or show label spaces"),
    "report": ("records", "write the page of an evaluation, or compare several"),
    "compare": ("compare", "pretrain several ways, test them on the same images, judge who is better"),
    "bundle": ("bundle", "make a Model Zoo bundle from a finished training run"),
    "export": ("bundle", "write the classifier of a bundle as Hugging Face folder, TorchScript or ONNX"),
    "predict": ("bundle", "findings of image files, by a bundle"),
    "serve": ("serve", "the same over HTTP"),
}
"""Each command: its module in :mod:`vivid_monai.commands`, and what it does in a few words."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default not in (None, "") and action.default is not False
        return super()._get_help_string(action) if said else action.help


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest right word."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As argparse's, but an option that there is not is an error, and the first one."""
        words = list(sys.argv[1:] if args is None else args)
        own = takewhile(lambda word: word.startswith("-"), words) if self._subparsers else words
        self._refuse(list(takewhile(lambda word: word != "--", own)))
        parsed, left = super().parse_known_args(words, namespace)
        if left:
            self._refuse(left)
            self.error(f"{' '.join(left)}: nothing takes this word")
        return parsed, left

    def _refuse(self, words: Sequence[str]) -> None:
        known = self._option_string_actions
        for word in (one.partition("=")[0] for one in words if one.startswith("--") and one != "--"):
            if not any(option.startswith(word) for option in known):  # argparse knows options by their beginnings
                self.error(f"there is no option {word}{did_you_mean(word, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(one) for one in action.choices]
            nearest = did_you_mean(str(value), choices)
            raise argparse.ArgumentError(action, f"no {value!r}{nearest} It is one of {', '.join(choices)}")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{one_line(VividError(f'{self.prog}: {message}'))} (see {self.prog} --help)\n")


def _spelt(word: str) -> str:
    """An option as this command writes it: "--batch_size=4", as MONAI's does, is "--batch-size=4"."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of ``vivid``. Of its subcommands only `command` is imported: MONAI alone takes seconds."""
    parser = _Parser(
        prog="vivid",
        description="VIVID-Med: prepare images and labels for pretraining, look at what came out, put it to use.",
        epilog="Training is a bundle workflow: python -m monai.bundle run training --config_file configs/train.json",
    )
    parser.add_argument("--version", action="version", version=f"vivid-monai {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        one = subparsers.add_parser(name, help=summary, formatter_class=_Help)
        if name == command:
            commands = import_module(f"vivid_monai.commands.{module}")
            run = getattr(commands, f"run_{name}")
            one.description = run.__doc__
            one.set_defaults(func=run)
            getattr(commands, f"add_{name}")(one)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``vivid``; returns the exit status: 0 done, 1 findings to mend, 2 unusable input, 3 too much
    would be lost, 130 interrupted.

    Errors meant for the user (:class:`vivid_monai.errors.VividError`) and those of the operating system (a missing
    file, a full disk) are one line on stderr, never a traceback.
    """
    words = [_spelt(word) for word in (sys.argv[1:] if argv is None else argv)]
    command = next((word for word in words if not word.startswith("-")), None)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files are bytes
    try:
        with _terminated_as_interrupted():
            show_messages()
            args = build_parser(command).parse_args(words)
            return int(args.func(args))
    except BrokenPipeError:  # the reader of the output has seen enough, as in: vivid verify … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (VividError, OSError) as error:
        who = f"vivid {command}: "
        print(who + one_line(error, LONGEST - len(who)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vivid {command}: interrupted; the same command goes on, or begins again", file=sys.stderr)
        return 130


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: what is done is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
