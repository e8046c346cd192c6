"""``vivid prepare lidc``: nodules of LIDC-IDRI, their identities, crops and manifest."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from vivid_monai.commands.prepare_options import EPILOG, add_shared_options, check_workers, write_manifest
from vivid_monai.errors import VividError
from vivid_monai.prepare.lidc.nodules import write_table
from vivid_monai.prepare.lidc.source import CropRule, read, read_identities
from vivid_monai.prepare.source import write_skip_list

_WHAT = "LIDC-IDRI, from its CT series in DICOM and the readers' XML"


def add(sources: Any) -> None:
    """Add the source to the subparsers of ``vivid prepare``."""
    rule = CropRule()
    parser = sources.add_parser(
        "lidc",
        help=_WHAT,
        description=f"Make nodules.csv, crops and a manifest of {_WHAT}: docs/lidc.md.",
        epilog=EPILOG,
    )
    parser.set_defaults(func=run)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of the CT series; any layout")
    parser.add_argument("--xml", type=Path, metavar="DIR", help="the folder of the readers' XML (default: ROOT)")
    parser.add_argument(
        "--nodules", type=Path, metavar="CSV", help="a nodules.csv: its nodules are taken as they are, no XML is read"
    )
    parser.add_argument("--table-only", action="store_true", help="write nodules.csv from the XML alone, without CT")
    parser.add_argument(
        "--min-readers", type=int, default=1, metavar="N", help="nodules need as many (default: %(default)s)"
    )
    parser.add_argument(
        "--rating", choices=("mean", "median"), default="mean", help="of the readers' malignancy (default: %(default)s)"
    )
    for name, default, what in (
        ("--crop-mm", rule.crop_mm, "side of a crop"),
        ("--pixel-mm", rule.pixel_mm, "size of its pixels"),
        ("--slice-mm", rule.slice_mm, "distance of its three slices"),
    ):
        parser.add_argument(name, type=float, default=default, metavar="MM", help=f"{what} (default: %(default)s)")
    add_shared_options(parser, val="0.1", test="0.2", policy="keep")


def run(args: argparse.Namespace) -> int:
    """Read, cut, write, print the card; or, with --table-only, the table alone."""
    check_workers(args)
    if args.table_only:
        return _table_only(args)
    source = read(
        args.root,
        out=args.out,
        xml=args.xml,
        nodules=args.nodules,
        min_readers=args.min_readers,
        rating=args.rating,
        crops=CropRule(crop_mm=args.crop_mm, pixel_mm=args.pixel_mm, slice_mm=args.slice_mm),
    )
    manifest = write_manifest(source, args)
    print(f"Keep {args.out / 'nodules.csv'} with your results: --nodules makes the same nodules of it again.")
    files = "\"['configs/evaluate.json','configs/eval/lidc_malignancy.json']\""
    print(f"Next: python -m monai.bundle run evaluating --config_file {files} --manifest {shlex.quote(str(manifest))}")
    return 0


def _table_only(args: argparse.Namespace) -> int:
    if args.nodules:
        raise VividError("--table-only makes a table of the XML; --nodules brings one: give only one of them")
    nodules, skipped, notes = read_identities(args.root, xml=args.xml)
    write_table(nodules, args.out / "nodules.csv")
    write_skip_list(skipped, args.out / "skipped.csv")
    print("\n".join([*notes, f"Skipped files, listed in skipped.csv: {len(skipped):,}."]))
    print(f"Wrote {args.out / 'nodules.csv'}. Without the CT: no patients, no slice indices, nothing in mm but z.")
    return 0
