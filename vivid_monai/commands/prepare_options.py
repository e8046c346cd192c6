"""What every source of ``vivid prepare`` shares: its options, and what is done with what it read."""

import argparse
import shlex
import sys
from pathlib import Path

from vivid_monai.data.splits import SplitRule
from vivid_monai.errors import VividError
from vivid_monai.prepare.build import prepare
from vivid_monai.prepare.card import to_markdown
from vivid_monai.prepare.image_files import CHECKS
from vivid_monai.prepare.source import Source

EPILOG = """\
Written to --out, each whole or not at all: manifest.parquet, card.md and card.json (what is in it), skipped.csv (every
row that is not, with the reason). Formats, policies and your own data in five minutes: docs/data.md.
"""


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Where to write, and how far to look at the images, for a source whose splits and labels leave no choice."""
    parser.set_defaults(salt=SplitRule().salt, val=None, test=None, contradictions=None)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--check",
        choices=CHECKS,
        default="files",
        help="none: trust the table; files: the files are there; images: read every one (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="parallel readers (default: %(default)s)")
    parser.add_argument("--jsonl", action="store_true", help="also write every row as a UMS record to records.jsonl")


def add_shared_options(parser: argparse.ArgumentParser, *, val: str, test: str, policy: str) -> None:
    """The above, and how to split and to treat contradictions. ``val``, ``test``: the source's defaults, in words."""
    add_output_options(parser)
    parser.add_argument("--salt", default=SplitRule().salt, help="of the patients' hash (default: %(default)s)")
    parser.add_argument("--val", type=float, metavar="X", help=f"fraction of the patients for val (default: {val})")
    parser.add_argument("--test", type=float, metavar="X", help=f"fraction of the patients for test (default: {test})")
    parser.add_argument(
        "--contradictions",
        choices=("keep", "skip", "error"),
        default=policy,
        help="rows whose labels contradict each other: keep and count, skip and list, or stop (default: %(default)s)",
    )


def write_manifest(source: Source, args: argparse.Namespace) -> Path:
    """Check, split, write and print the card of what a source read; returns the manifest's path.

    Raises:
        VividError: as `prepare`.
    """
    prepared = prepare(
        source,
        salt=args.salt,
        val=args.val,
        test=args.test,
        on_contradiction=args.contradictions,
        check=args.check,
        workers=args.workers,
        command=shlex.join(["vivid", *sys.argv[1:]]),
    )
    manifest = prepared.write(args.out)
    if args.jsonl:
        prepared.manifest.to_jsonl(args.out / "records.jsonl")
    print(to_markdown(prepared.card))
    print(f"Wrote {manifest}, with card.md, card.json and skipped.csv beside it.")
    return manifest


def check_workers(args: argparse.Namespace) -> None:
    """Raise a VividError where --workers cannot be meant; before anything is read."""
    if args.workers < 1:
        raise VividError(f"--workers {args.workers}: at least 1")
