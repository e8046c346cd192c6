"""``vivid prepare``: read a data set as distributed, or your own table, into one validated manifest."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vivid_monai.data.build import prepare
from vivid_monai.data.card import to_markdown
from vivid_monai.data.sources import chexpert, nih, table
from vivid_monai.data.sources.image_files import CHECKS
from vivid_monai.data.sources.source import Source
from vivid_monai.data.splits import SplitRule
from vivid_monai.errors import VividError

_EPILOG = """\
Written to --out, each whole or not at all: manifest.parquet, card.md and card.json (what is in it), skipped.csv (every
row that is not, with the reason). Formats, policies and your own data in five minutes: docs/data.md.
"""


def register(subparsers: Any) -> None:
    """Add the subcommand and its three sources to the parser of ``vivid``."""
    parser = subparsers.add_parser(
        "prepare",
        help="make a manifest from a data set",
        description="Read a data set as distributed, or your own table, into one validated manifest split by patient.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    one = _add(sources, "chexpert", _read_chexpert, "CheXpert or CheXpert-small, from its train.csv and valid.csv")
    one.add_argument("root", type=Path, metavar="ROOT", help="the folder that holds train.csv, or its parent")
    _label_space(one, "chexpert-14")
    _shared(one, val="0.02, or 0 where valid.csv is val", test="0.1, or 0 where a table is test", policy="keep")

    one = _add(sources, "nih", _read_nih, "NIH ChestX-ray14, from its Data_Entry_2017 table")
    one.add_argument("root", type=Path, metavar="ROOT", help="the folder of the table and of images_001 … or images")
    _label_space(one, "nih-14")
    _shared(one, val="0.1", test="0.2, or 0 with the official lists", policy="keep")

    one = _add(sources, "table", _read_table, "your own CSV, TSV or Parquet, through a mapping file")
    one.add_argument("table", type=Path, metavar="FILE", help="the table: .csv, .tsv or .parquet")
    one.add_argument("--mapping", type=Path, required=True, metavar="MAP.json", help="which column and cell means what")
    one.add_argument("--image-root", type=Path, metavar="DIR", help="where image paths start (default: FILE's folder)")
    _shared(one, val="0.1", test="0.2", policy="skip")


def _add(sources: Any, name: str, read: Callable[[argparse.Namespace], Source], what: str) -> argparse.ArgumentParser:
    parser = sources.add_parser(name, help=what, description=f"Make a manifest of {what}.", epilog=_EPILOG)
    parser.set_defaults(func=run, read=read)
    return parser


def _label_space(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--label-space",
        default=default,
        metavar="NAME|FILE",
        help="fields of the manifest; labels are taken over by concept, others are null (default: %(default)s)",
    )


def _shared(parser: argparse.ArgumentParser, *, val: str, test: str, policy: str) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--salt", default=SplitRule().salt, help="of the patients' hash (default: %(default)s)")
    parser.add_argument("--val", type=float, metavar="X", help=f"fraction of the patients for val (default: {val})")
    parser.add_argument("--test", type=float, metavar="X", help=f"fraction of the patients for test (default: {test})")
    parser.add_argument(
        "--contradictions",
        choices=("keep", "skip", "error"),
        default=policy,
        help="rows whose labels contradict each other: keep and count, skip and list, or stop (default: %(default)s)",
    )
    parser.add_argument(
        "--check",
        choices=CHECKS,
        default="files",
        help="none: trust the table; files: the files are there; images: read every one (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="parallel readers (default: %(default)s)")
    parser.add_argument("--jsonl", action="store_true", help="also write every row as a UMS record to records.jsonl")


def run(args: argparse.Namespace) -> int:
    """Read, check, write, print the card, and say what comes next."""
    if args.workers < 1:
        raise VividError(f"--workers {args.workers}: at least 1")
    prepared = prepare(
        args.read(args),
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
    overlay = f"configs/data/{args.source}.json"
    files = f"\"['configs/train.json','{overlay}']\""
    print(f"Next: python -m monai.bundle run training --config_file {files} --manifest {shlex.quote(str(manifest))}")
    return 0


def _read_chexpert(args: argparse.Namespace) -> Source:
    return chexpert.read(args.root, label_space=args.label_space)


def _read_nih(args: argparse.Namespace) -> Source:
    return nih.read(args.root, label_space=args.label_space, find_files=args.check != "none")


def _read_table(args: argparse.Namespace) -> Source:
    return table.read(args.table, mapping=args.mapping, image_root=args.image_root or args.table.parent)
