"""``vivid prepare``: read a data set as distributed, or your own table, into one validated manifest; make it harder."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vivid_monai.data.splits import ENOUGH, SPLITS, SplitRule
from vivid_monai.errors import VividError
from vivid_monai.prepare import chexpert, conditions, medmnist, nih, table
from vivid_monai.prepare.build import prepare
from vivid_monai.prepare.card import to_markdown
from vivid_monai.prepare.image_files import CHECKS
from vivid_monai.prepare.lidc.nodules import write_table
from vivid_monai.prepare.lidc.source import CropRule, read_identities
from vivid_monai.prepare.lidc.source import read as read_lidc
from vivid_monai.prepare.source import Source, write_skip_list
from vivid_monai.storage.files import require_text
from vivid_monai.ums.states import ABSENT, NULL, PRESENT

EPILOG = (
    "Written to --out, each whole or not at all: manifest.parquet, card.md and card.json (what is in it), skipped.csv "
    "(every row that is not, with the reason). Formats, policies and your own data in five minutes: docs/data.md."
)


def add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")

    def source(name: str, what: str, read: Callable[[argparse.Namespace], Source], text: str = "Make a manifest of {}"):
        one = sources.add_parser(name, help=what, epilog=EPILOG, formatter_class=parser.formatter_class)
        one.description = text.format(what) + "."
        one.set_defaults(read=read, table_only=False)
        return one, one.add_argument

    one, add = source(
        "chexpert",
        "CheXpert or CheXpert-small, from its train.csv and valid.csv",
        lambda args: chexpert.read(args.root, label_space=args.label_space),
    )
    add("root", type=Path, metavar="ROOT", help="the folder that holds train.csv, or its parent")
    _label_space(one, "chexpert-14")
    _split_options(one, val="0.02, or 0 where valid.csv is val", test="0.1, or 0 where a table is test")

    one, add = source(
        "nih",
        "NIH ChestX-ray14, from its Data_Entry_2017 table",
        lambda args: nih.read(args.root, label_space=args.label_space, find_files=args.check != "none"),
    )
    add("root", type=Path, metavar="ROOT", help="the folder of the table and of images_001 … or images")
    _label_space(one, "nih-14")
    _split_options(one, test="0.2, or 0 with the official lists")

    one, add = source(
        "table",
        "your own CSV, TSV or Parquet, through a mapping file",
        lambda args: table.read(args.table, mapping=args.mapping, image_root=args.image_root or args.table.parent),
    )
    add("table", type=Path, metavar="FILE", help="the table: .csv, .tsv or .parquet")
    add("--mapping", type=Path, required=True, metavar="MAP.json", help="which column and cell means what")
    add("--image-root", type=Path, metavar="DIR", help="where image paths start (default: FILE's folder)")
    _split_options(one, policy="skip")

    def read_crops(args: argparse.Namespace) -> Source:
        options = {name: getattr(args, name) for name in ("out", "xml", "nodules", "min_readers", "rating")}
        crops = CropRule(crop_mm=args.crop_mm, pixel_mm=args.pixel_mm, slice_mm=args.slice_mm)
        return read_lidc(args.root, crops=crops, **options)

    text = "Make nodules.csv, crops and a manifest of {}: docs/lidc.md"
    one, add = source("lidc", "LIDC-IDRI, from its CT series in DICOM and the readers' XML", read_crops, text)
    add("root", type=Path, metavar="ROOT", help="the folder of the CT series; any layout")
    add("--xml", type=Path, metavar="DIR", help="the folder of the readers' XML (default: ROOT)")
    add("--nodules", type=Path, metavar="CSV", help="a nodules.csv: its nodules are taken as they are, no XML is read")
    add("--table-only", action="store_true", help="write nodules.csv from the XML alone, without CT")
    add("--min-readers", type=int, default=1, metavar="N", help="nodules need as many")
    add("--rating", choices=("mean", "median"), default="mean", help="of the readers' malignancy")
    rule = CropRule()
    add("--crop-mm", type=float, default=rule.crop_mm, metavar="MM", help="side of a crop")
    add("--pixel-mm", type=float, default=rule.pixel_mm, metavar="MM", help="size of its pixels")
    add("--slice-mm", type=float, default=rule.slice_mm, metavar="MM", help="distance of its three slices")
    _split_options(one)

    def read_medmnist(args: argparse.Namespace) -> Source:
        options = {name: getattr(args, name) for name in ("root", "out", "size", "download", "workers")}
        return medmnist.read(args.name, unofficial=args.unofficial_file, **options)

    text = "Make images and a manifest of {}: docs/medmnist.md"
    what = "OrganAMNIST or another set of MedMNIST, from its official file"
    one, add = source("medmnist", what, read_medmnist, text)
    add("name", choices=medmnist.NAMES, metavar="NAME", help=", ".join(medmnist.NAMES))
    add("--root", type=Path, metavar="DIR", help="folder of the official .npz")
    add("--size", type=int, choices=medmnist.SIZES, default=224, help="pixels")
    add("--download", action="store_true", help="fetch the file where it is missing")
    what = "a file of the same layout instead; the card will say so"
    add("--unofficial-file", type=Path, metavar="NPZ", help=what)
    _output_options(one)

    what = "a prepared folder under harder conditions: few, wrong, missing or hidden training labels"
    one = sources.add_parser("conditions", help=what, formatter_class=parser.formatter_class)
    one.description = _conditions.__doc__
    _condition_options(one)


def _condition_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The same images, the same test labels: docs/data.md. Several may be combined."
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="a folder of vivid prepare or vivid phantom")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write manifest.parquet to")
    add("--labels", type=float, default=1.0, metavar="X", help="share of the training patients that are kept")
    what = "share of the patients with this finding that are kept in training and validation"
    add("--rare", nargs="+", default=[], metavar="FIELD=X", help=what)
    add("--noise", type=float, default=0.0, metavar="P", help="probability that present and absent are interchanged")
    add("--missing", type=float, default=0.0, metavar="P", help="probability that a state becomes null")
    add("--assume-absent", action="store_true", help="null becomes absent: what answerability is there to avoid")
    add("--hide", nargs="+", default=[], metavar="FIELD", help="no training image answers these; validation does")
    add("--shuffle", action="store_true", help="training states become those of another patient: a control")
    add("--name", help="of the data set from now on; those of a union need different ones")
    add("--seed", type=int, default=0, metavar="N", help="of the draws")


def _label_space(parser: argparse.ArgumentParser, default: str) -> None:
    what = "fields of the manifest; labels are taken over by concept, others are null"
    parser.add_argument("--label-space", default=default, metavar="NAME|FILE", help=what)


def _output_options(parser: argparse.ArgumentParser) -> None:
    """Where to write, and how far to look at the images, for a source whose splits and labels leave no choice."""
    add = parser.add_argument
    parser.set_defaults(salt=SplitRule().salt, val=None, test=None, contradictions=None)
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    what = "none: trust the table; files: the files are there; images: read every one"
    add("--check", choices=CHECKS, default="files", help=what)
    add("--workers", "--num-workers", type=int, default=2, metavar="N", help="processes that read images")
    what = "write a manifest that lacks over 5 %% of the rows, or over 20 %% of a field's present, absent or uncertain"
    add("--accept-losses", action="store_true", help=what)
    add("--jsonl", action="store_true", help="also write every row as a UMS record to records.jsonl")


def _split_options(
    parser: argparse.ArgumentParser, *, val: str = "0.1", test: str = "0.2", policy: str = "keep"
) -> None:
    """The above, and how to split and to treat contradictions. ``val``, ``test``: the source's defaults, in words."""
    add = parser.add_argument
    _output_options(parser)
    add("--salt", default=SplitRule().salt, help="of the patients' hash")
    add("--val", type=float, metavar="X", help=f"fraction of the patients for val (default: {val})")
    add("--test", type=float, metavar="X", help=f"fraction of the patients for test (default: {test})")
    what = "rows whose labels contradict each other: keep and count, skip and list, or stop"
    add("--contradictions", choices=("keep", "skip", "error"), default=policy, help=what)


def run_prepare(args: argparse.Namespace) -> int:
    """Read a data set as distributed, or your own table, into one validated manifest split by patient."""
    if not args.out.parts:
        raise VividError("--out is empty, as of a shell variable that is not set; give a folder")
    require_text(args.out)
    if args.source == "conditions":
        return _conditions(args)
    if args.workers < 1:
        raise VividError(f"--workers {args.workers}: at least 1")
    if args.table_only:
        return _nodules_only(args)
    options = {name: getattr(args, name) for name in ("salt", "val", "test", "check", "workers")}
    command = shlex.join(["vivid", *sys.argv[1:]])
    prepared = prepare(args.read(args), on_contradiction=args.contradictions, command=command, **options)
    if (lost := prepared.card["losses"]["over"]) and not args.accept_losses:
        prepared.describe(args.out)
        print(to_markdown(prepared.card))
        some = "; ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        why = f"card.md and skipped.csv in {args.out} say why"
        told = f"{some} would be lost; no manifest was written: {why}. Mend that, or pass --accept-losses"
        print(f"vivid prepare: {told}", file=sys.stderr)
        return 3
    manifest = prepared.write(args.out)
    if args.jsonl:
        prepared.manifest.to_jsonl(args.out / "records.jsonl")
    print(to_markdown(prepared.card))
    print(f"Wrote {manifest}, with card.md, card.json and skipped.csv beside it.")
    if few := prepared.card["few"]:
        some = ", ".join(few[:3]) + (f" and {len(few) - 3} more fields" if len(few) > 3 else "")
        print(f"Under {ENOUGH} images, too few to be answered by a bundle (val) or counted in a test: {some}.")
    if args.source == "lidc":
        print(f"Keep {args.out / 'nodules.csv'} with your results: --nodules makes the same nodules of it again.")
    workflow, config = "training --config_file \"['configs/train.json'", f"data/{args.source}"
    if args.source in ("lidc", "medmnist"):
        task = {"lidc": "lidc_malignancy", "organamnist": "organamnist"}.get(getattr(args, "name", "lidc"), "table")
        workflow, config = "evaluating --config_file \"['configs/evaluate.json'", f"eval/{task}"
    files = f"{workflow},'configs/{config}.json']\""
    print(f"Next: python -m monai.bundle run {files} --manifest {shlex.quote(str(manifest))}")
    return 0


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


def _conditions(args: argparse.Namespace) -> int:
    """Write a manifest of the same images whose training and validation labels are harder to learn from. The test split
    stays as it is, patients are kept whole, and all settings are in the manifest."""
    rare = {}
    for word in args.rare:
        name, _, share = word.rpartition("=")
        try:
            rare[name] = float(share)
        except ValueError as error:
            raise VividError(f"--rare {word}: write FIELD=SHARE, such as Edema=0.1") from error
    names = ("labels", "noise", "missing", "shuffle", "assume_absent", "name", "seed")
    settings = {name: getattr(args, name) for name in names}
    asked = conditions.Conditions(rare=rare, hide=tuple(args.hide), **settings)
    before, made = conditions.prepare(args.folder, args.out, asked)
    print(f"{args.out} ({conditions.told_of(made)}), in brackets {args.folder}\n")
    for split in (one for one in SPLITS if one in made.table["split"].unique().to_pylist()):
        now, then = (one.select(split).patients() for one in (made, before))
        whom = f"{len(np.unique(now)):,} patients ({len(then):,} of {len(np.unique(then)):,})"
        print(f"{split:5s} {len(now):,} images of {whom}")
    print(f"\n{'training images':32s}" + "".join(f"{word:>16s}" for word in ("present", "absent", "null")))
    counts = [_counts(one.select("train").states()) for one in (made, before)]
    for name, now, then in zip(made.fields, *counts, strict=True):
        print(f"{name:32s}" + "".join(f"{f'{a:,} ({b:,})':>16s}" for a, b in zip(now, then, strict=True)))
    files = "\"['configs/train.json','configs/data/table.json']\""
    manifest = shlex.quote(str(args.out / "manifest.parquet"))
    print(f"\nNext: python -m monai.bundle run training --config_file {files} --manifest {manifest}")
    print(f"or: vivid compare {shlex.quote(str(args.out))}")
    return 0


def _counts(states: np.ndarray) -> np.ndarray:
    """How many are present, absent and null, (F, 3)."""
    return np.stack([(states == state).sum(axis=0) for state in (PRESENT, ABSENT, NULL)], axis=1)
