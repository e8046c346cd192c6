"""``vivid prepare``: read a data set as distributed, or your own table, into one validated manifest."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vivid_monai.data.splits import SplitRule
from vivid_monai.errors import VividError
from vivid_monai.prepare import chexpert, medmnist, nih, table
from vivid_monai.prepare.build import prepare
from vivid_monai.prepare.card import to_markdown
from vivid_monai.prepare.image_files import CHECKS
from vivid_monai.prepare.lidc.nodules import write_table
from vivid_monai.prepare.lidc.source import CropRule, read_identities
from vivid_monai.prepare.lidc.source import read as read_lidc
from vivid_monai.prepare.source import Source, write_skip_list

EPILOG = """\
Written to --out, each whole or not at all: manifest.parquet, card.md and card.json (what is in it), skipped.csv (every
row that is not, with the reason). Formats, policies and your own data in five minutes: docs/data.md.
"""


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Options of ``vivid prepare`` and of its sources."""
    parser.description = (
        "Read a data set as distributed, or your own table, into one validated manifest split by patient."
    )
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")

    one = _add(sources, "chexpert", _read_chexpert, "CheXpert or CheXpert-small, from its train.csv and valid.csv")
    one.add_argument("root", type=Path, metavar="ROOT", help="the folder that holds train.csv, or its parent")
    _label_space(one, "chexpert-14")
    _split_options(one, val="0.02, or 0 where valid.csv is val", test="0.1, or 0 where a table is test", policy="keep")

    one = _add(sources, "nih", _read_nih, "NIH ChestX-ray14, from its Data_Entry_2017 table")
    one.add_argument("root", type=Path, metavar="ROOT", help="the folder of the table and of images_001 … or images")
    _label_space(one, "nih-14")
    _split_options(one, val="0.1", test="0.2, or 0 with the official lists", policy="keep")

    one = _add(sources, "table", _read_table, "your own CSV, TSV or Parquet, through a mapping file")
    one.add_argument("table", type=Path, metavar="FILE", help="the table: .csv, .tsv or .parquet")
    one.add_argument("--mapping", type=Path, required=True, metavar="MAP.json", help="which column and cell means what")
    one.add_argument("--image-root", type=Path, metavar="DIR", help="where image paths start (default: FILE's folder)")
    _split_options(one, val="0.1", test="0.2", policy="skip")

    what = "LIDC-IDRI, from its CT series in DICOM and the readers' XML"
    one = _add(
        sources, "lidc", _read_lidc, what, text=f"Make nodules.csv, crops and a manifest of {what}: docs/lidc.md."
    )
    _lidc_options(one)

    what = "OrganAMNIST or another set of MedMNIST, from its official file"
    one = _add(
        sources, "medmnist", _read_medmnist, what, text=f"Make images and a manifest of {what}: docs/medmnist.md."
    )
    one.add_argument("name", choices=medmnist.NAMES, metavar="NAME", help=", ".join(medmnist.NAMES))
    one.add_argument("--root", type=Path, metavar="DIR", help="folder of the official .npz")
    one.add_argument("--size", type=int, choices=medmnist.SIZES, default=224, help="pixels (default: %(default)s)")
    one.add_argument("--download", action="store_true", help="fetch the file where it is missing")
    one.add_argument(
        "--unofficial-file", type=Path, metavar="NPZ", help="a file of the same layout instead; the card will say so"
    )
    _output_options(one)


def _add(
    sources: Any, name: str, read: Callable[[argparse.Namespace], Source], what: str, *, text: str = ""
) -> argparse.ArgumentParser:
    parser = sources.add_parser(name, help=what, description=text or f"Make a manifest of {what}.", epilog=EPILOG)
    parser.set_defaults(func=_prepare, read=read, table_only=False)
    return parser


def _label_space(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--label-space",
        default=default,
        metavar="NAME|FILE",
        help="fields of the manifest; labels are taken over by concept, others are null (default: %(default)s)",
    )


def _output_options(parser: argparse.ArgumentParser) -> None:
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


def _split_options(parser: argparse.ArgumentParser, *, val: str, test: str, policy: str) -> None:
    """The above, and how to split and to treat contradictions. ``val``, ``test``: the source's defaults, in words."""
    _output_options(parser)
    parser.add_argument("--salt", default=SplitRule().salt, help="of the patients' hash (default: %(default)s)")
    parser.add_argument("--val", type=float, metavar="X", help=f"fraction of the patients for val (default: {val})")
    parser.add_argument("--test", type=float, metavar="X", help=f"fraction of the patients for test (default: {test})")
    parser.add_argument(
        "--contradictions",
        choices=("keep", "skip", "error"),
        default=policy,
        help="rows whose labels contradict each other: keep and count, skip and list, or stop (default: %(default)s)",
    )


def _lidc_options(parser: argparse.ArgumentParser) -> None:
    rule, add = CropRule(), parser.add_argument
    add("root", type=Path, metavar="ROOT", help="the folder of the CT series; any layout")
    add("--xml", type=Path, metavar="DIR", help="the folder of the readers' XML (default: ROOT)")
    add("--nodules", type=Path, metavar="CSV", help="a nodules.csv: its nodules are taken as they are, no XML is read")
    add("--table-only", action="store_true", help="write nodules.csv from the XML alone, without CT")
    add("--min-readers", type=int, default=1, metavar="N", help="nodules need as many (default: %(default)s)")
    rating = "of the readers' malignancy (default: %(default)s)"
    add("--rating", choices=("mean", "median"), default="mean", help=rating)
    for name, default, what in (
        ("--crop-mm", rule.crop_mm, "side of a crop"),
        ("--pixel-mm", rule.pixel_mm, "size of its pixels"),
        ("--slice-mm", rule.slice_mm, "distance of its three slices"),
    ):
        add(name, type=float, default=default, metavar="MM", help=f"{what} (default: %(default)s)")
    _split_options(parser, val="0.1", test="0.2", policy="keep")


def _prepare(args: argparse.Namespace) -> int:
    """Read, check, split, write, print the card, and say what comes next."""
    if args.workers < 1:
        raise VividError(f"--workers {args.workers}: at least 1")
    if args.table_only:
        return _nodules_only(args)
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
    if args.source == "lidc":
        print(f"Keep {args.out / 'nodules.csv'} with your results: --nodules makes the same nodules of it again.")
    workflow, config = "training --config_file \"['configs/train.json'", f"data/{args.source}"
    if args.source in ("lidc", "medmnist"):
        task = {"lidc": "lidc_malignancy", "organamnist": "organamnist"}.get(getattr(args, "name", "lidc"), "table")
        workflow, config = "evaluating --config_file \"['configs/evaluate.json'", f"eval/{task}"
    files = f"{workflow},'configs/{config}.json']\""
    print(f"Next: python -m monai.bundle run {files} --manifest {shlex.quote(str(manifest))}")
    return 0


def _read_chexpert(args: argparse.Namespace) -> Source:
    return chexpert.read(args.root, label_space=args.label_space)


def _read_nih(args: argparse.Namespace) -> Source:
    return nih.read(args.root, label_space=args.label_space, find_files=args.check != "none")


def _read_table(args: argparse.Namespace) -> Source:
    return table.read(args.table, mapping=args.mapping, image_root=args.image_root or args.table.parent)


def _read_lidc(args: argparse.Namespace) -> Source:
    return read_lidc(
        args.root,
        out=args.out,
        xml=args.xml,
        nodules=args.nodules,
        min_readers=args.min_readers,
        rating=args.rating,
        crops=CropRule(crop_mm=args.crop_mm, pixel_mm=args.pixel_mm, slice_mm=args.slice_mm),
    )


def _read_medmnist(args: argparse.Namespace) -> Source:
    return medmnist.read(
        args.name,
        root=args.root,
        out=args.out,
        size=args.size,
        download=args.download,
        unofficial=args.unofficial_file,
        workers=args.workers,
    )


def _nodules_only(args: argparse.Namespace) -> int:
    """``vivid prepare lidc --table-only``."""
    if args.nodules:
        raise VividError("--table-only makes a table of the XML; --nodules brings one: give only one of them")
    nodules, skipped, notes = read_identities(args.root, xml=args.xml)
    write_table(nodules, args.out / "nodules.csv")
    write_skip_list(skipped, args.out / "skipped.csv")
    print("\n".join([*notes, f"Skipped files, listed in skipped.csv: {len(skipped):,}."]))
    print(f"Wrote {args.out / 'nodules.csv'}. Without the CT: no patients, no slice indices, nothing in mm but z.")
    return 0
