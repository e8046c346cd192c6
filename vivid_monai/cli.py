"""The console command ``vivid``: everything that is not a bundle workflow.

Training, evaluation and inference run through ``python -m monai.bundle run``. What comes before and after them, such as
preparing a data set or checking records, is a subcommand here, one module of :mod:`vivid_monai.commands` each.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from vivid_monai import __version__
from vivid_monai.errors import VividError

COMMANDS = ("prepare", "phantom", "verify", "labels", "report", "bundle", "predict")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``vivid`` with every subcommand registered."""
    parser = argparse.ArgumentParser(
        prog="vivid",
        description="VIVID-Med: prepare medical images and labels for pretraining, and look at what came out.",
        epilog="Training is a bundle workflow: python -m monai.bundle run training --config_file configs/train.json",
    )
    parser.add_argument("--version", action="version", version=f"vivid-monai {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"vivid_monai.commands.{name}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``vivid``; returns the exit status: 0 done, 1 findings to mend, 2 unusable input, 130 interrupted.

    Errors meant for the user (:class:`vivid_monai.errors.VividError`) and those of the operating system (a missing
    file, a full disk) are one line on stderr, never a traceback.
    """
    args = build_parser().parse_args(argv)
    try:
        return int(args.func(args) or 0)
    except BrokenPipeError:  # the reader of the output has seen enough, as in: vivid verify … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (VividError, OSError) as error:
        print(f"vivid {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vivid {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
