"""``vivid prepare``: read a data set as distributed, or your own table, into one validated manifest."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vivid_monai.commands import prepare_lidc, prepare_medmnist
from vivid_monai.commands.prepare_options import EPILOG, add_shared_options, check_workers, write_manifest
from vivid_monai.prepare import chexpert, nih, table
from vivid_monai.prepare.source import Source


def register(subparsers: Any, *, summary: str = "") -> None:
    """Add the subcommand and its sources to the parser of ``vivid``."""
    parser = subparsers.add_parser(
        "prepare",
        help=summary,
        description="Read a data set as distributed, or your own table, into one validated manifest split by patient.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    one = _add(sources, "chexpert", _read_chexpert, "CheXpert or CheXpert-small, from its train.csv and valid.csv")
    one.add_argument("root", type=Path, metavar="ROOT", help="the folder that holds train.csv, or its parent")
    _label_space(one, "chexpert-14")
    add_shared_options(
        one, val="0.02, or 0 where valid.csv is val", test="0.1, or 0 where a table is test", policy="keep"
    )

    one = _add(sources, "nih", _read_nih, "NIH ChestX-ray14, from its Data_Entry_2017 table")
    one.add_argument("root", type=Path, metavar="ROOT", help="the folder of the table and of images_001 … or images")
    _label_space(one, "nih-14")
    add_shared_options(one, val="0.1", test="0.2, or 0 with the official lists", policy="keep")

    one = _add(sources, "table", _read_table, "your own CSV, TSV or Parquet, through a mapping file")
    one.add_argument("table", type=Path, metavar="FILE", help="the table: .csv, .tsv or .parquet")
    one.add_argument("--mapping", type=Path, required=True, metavar="MAP.json", help="which column and cell means what")
    one.add_argument("--image-root", type=Path, metavar="DIR", help="where image paths start (default: FILE's folder)")
    add_shared_options(one, val="0.1", test="0.2", policy="skip")

    prepare_lidc.add(sources)
    prepare_medmnist.add(sources)


def _add(sources: Any, name: str, read: Callable[[argparse.Namespace], Source], what: str) -> argparse.ArgumentParser:
    parser = sources.add_parser(name, help=what, description=f"Make a manifest of {what}.", epilog=EPILOG)
    parser.set_defaults(func=run, read=read)
    return parser


def _label_space(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--label-space",
        default=default,
        metavar="NAME|FILE",
        help="fields of the manifest; labels are taken over by concept, others are null (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Read, check, write, print the card, and say what comes next."""
    check_workers(args)
    manifest = write_manifest(args.read(args), args)
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
