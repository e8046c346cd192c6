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

from vivid_monai import __version__
from vivid_monai.errors import LONGEST, VividError, one_line
from vivid_monai.logs import show_messages

COMMANDS = {
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


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of ``vivid``. Of its subcommands only `command` is imported: MONAI alone takes seconds."""
    parser = argparse.ArgumentParser(
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
    words = sys.argv[1:] if argv is None else argv
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
