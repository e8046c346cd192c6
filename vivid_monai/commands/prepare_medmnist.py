"""``vivid prepare medmnist``: a MedMNIST file as images and a manifest."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from vivid_monai.commands.prepare_options import EPILOG, add_output_options, check_workers, write_manifest
from vivid_monai.prepare.medmnist import NAMES, SIZES, read

_WHAT = "OrganAMNIST or another set of MedMNIST, from its official file"


def add(sources: Any) -> None:
    """Add the source to the subparsers of ``vivid prepare``."""
    parser = sources.add_parser(
        "medmnist", help=_WHAT, description=f"Make images and a manifest of {_WHAT}: docs/medmnist.md.", epilog=EPILOG
    )
    parser.set_defaults(func=run)
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the official .npz")
    parser.add_argument("--size", type=int, choices=SIZES, default=224, help="pixels (default: %(default)s)")
    parser.add_argument("--download", action="store_true", help="fetch the file where it is missing")
    parser.add_argument(
        "--unofficial-file", type=Path, metavar="NPZ", help="a file of the same layout instead; the card will say so"
    )
    add_output_options(parser)


def run(args: argparse.Namespace) -> int:
    """Read, write the images, write the manifest, print the card."""
    check_workers(args)
    source = read(
        args.name,
        root=args.root,
        out=args.out,
        size=args.size,
        download=args.download,
        unofficial=args.unofficial_file,
        workers=args.workers,
    )
    manifest = write_manifest(source, args)
    task = "organamnist" if args.name == "organamnist" else "table"
    files = f"\"['configs/evaluate.json','configs/eval/{task}.json']\""
    print(f"Next: python -m monai.bundle run evaluating --config_file {files} --manifest {shlex.quote(str(manifest))}")
    return 0
