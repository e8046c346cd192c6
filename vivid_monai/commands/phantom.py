"""`vivid phantom`: write chest phantoms with their manifest and reports."""

import argparse
from pathlib import Path

from vivid_monai.prepare.phantoms import prepare


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", *, summary: str = "") -> None:
    """Add the command to the parser of `vivid`."""
    parser = subparsers.add_parser(
        "phantom",
        help=summary,
        description="Write radiograph-like images of chests that never were, with labels (label space chexpert-12), "
        "boxes, reports and a manifest split by patient. The same settings always give the same folder.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--n", type=int, default=4000, metavar="N", help="number of images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which population of patients (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=224, metavar="PIXELS", help="side of an image (default: %(default)s)"
    )
    parser.add_argument(
        "--val", type=float, default=0.1, help="fraction of patients to validate (default: %(default)s)"
    )
    parser.add_argument("--test", type=float, default=0.2, help="fraction of patients to test (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    manifest = prepare(
        args.out, n=args.n, seed=args.seed, size=args.size, val=args.val, test=args.test, workers=args.workers
    )
    print(f"{manifest}: {args.n} phantoms of {args.size} pixels")
    return 0
