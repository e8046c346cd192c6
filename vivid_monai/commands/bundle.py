"""``vivid bundle``: make a bundle of the MONAI Model Zoo from a finished training run."""

import argparse
from pathlib import Path
from typing import Any

from vivid_monai.deploy.bundle.build import Wording, build_bundle
from vivid_monai.deploy.finished import load_finished
from vivid_monai.evaluation.features import FeatureStore


def register(subparsers: Any, *, summary: str = "") -> None:
    """Add the subcommand to the parser of ``vivid``."""
    parser = subparsers.add_parser(
        "bundle",
        help=summary,
        description="Calibrate the classifier of a finished run on its validation images, choose the thresholds of its "
        "answers, and write a self-contained MONAI bundle that needs no package but MONAI.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the training run")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the bundle; its name ends in _classification"
    )
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="the run's data set (default: as the run has it)")
    parser.add_argument(
        "--sensitivity",
        type=float,
        default=0.9,
        help="share of present validation images that 'absent' may not be said of (default: %(default)s)",
    )
    parser.add_argument(
        "--specificity",
        type=float,
        default=0.9,
        help="share of absent validation images that 'present' may not be said of (default: %(default)s)",
    )
    parser.add_argument(
        "--accepted",
        type=float,
        default=0.99,
        help="share of images like the training ones that is to be answered; with less, more of the others are refused "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--onnx",
        choices=("float32", "int8", "none"),
        default="float32",
        help="what `vivid predict` runs, by ONNX Runtime: float32, the answers of PyTorch, faster; int8, a third of "
        "the time and a quarter of the size, refused where it changes an AUROC by over .002; none: PyTorch itself "
        "(default: %(default)s)",
    )
    parser.add_argument("--title", default=Wording.title, help="name for people (default: %(default)s)")
    parser.add_argument("--version", default=Wording.version, help="version of the bundle (default: %(default)s)")
    parser.add_argument("--authors", default=Wording.authors, help="default: %(default)s")
    parser.add_argument("--copyright", default=Wording.copyright, help="default: %(default)s")
    parser.add_argument(
        "--data-license", type=Path, metavar="FILE", help="conditions of the data, for data_license.txt"
    )
    parser.add_argument(
        "--weights-url",
        default="",
        metavar="URL",
        help="folder where files of over 25 MB will lie, for large_files.yml",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Build, print what was made and what to do next, and return the exit status."""
    finished = load_finished(
        args.run,
        FeatureStore(None),
        manifest=args.manifest,
        sensitivity=args.sensitivity,
        specificity=args.specificity,
        accepted=args.accepted,
    )
    wording = Wording(
        title=args.title,
        version=args.version,
        authors=args.authors,
        copyright=args.copyright,
        data_license=args.data_license.read_text(encoding="utf-8") if args.data_license else "",
        weights_url=args.weights_url,
    )
    onnx = None if args.onnx == "none" else args.onnx
    folder = build_bundle(finished, args.out, onnx=onnx, wording=wording)
    unanswered = [one.field for one in finished.calibrations if one.unanswered]
    print(f"\n{folder}: {len(finished.fields) - len(unanswered)} of {len(finished.fields)} findings are answered")
    for one in finished.calibrations:
        if one.unanswered:
            print(f"  not answered: {one.field}: {one.unanswered}")
    print(
        f"\nNext: read {folder / 'docs' / 'README.md'}; run it from that folder: python -m monai.bundle run "
        "--config_file configs/inference.json --dataset_dir IMAGES"
    )
    return 0
