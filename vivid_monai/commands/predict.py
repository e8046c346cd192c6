"""``vivid predict``: findings of image files, by a bundle."""

import argparse
from pathlib import Path
from typing import Any

from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.journal import ANSWERED
from vivid_monai.deploy.model import RUNTIMES, BundleModel
from vivid_monai.deploy.outputs import FILES
from vivid_monai.deploy.predict import predict


def register(subparsers: Any, *, summary: str = "") -> None:
    """Add the subcommand to the parser of ``vivid``."""
    parser = subparsers.add_parser(
        "predict",
        help=summary,
        description="Answer DICOM, PNG and JPEG files, NIfTI of one slice, and all files in folders, with the findings "
        "of a bundle. An image unlike those that the model was trained on is not assessed; a file that cannot be read "
        "is listed. Interrupted, the same command goes on where it was.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="an image or a folder of images")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="bundle of `vivid bundle`")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="where the answers go (default: %(default)s)",
    )
    parser.add_argument(
        "--runtime",
        choices=tuple(RUNTIMES),
        help="onnx: ONNX Runtime, torch: PyTorch (default: ONNX Runtime, where the bundle was built for it)",
    )
    parser.add_argument("--overlays", action="store_true", help="draw where the ViT looked")
    parser.add_argument(
        "--reports", action="store_true", help="write a DICOM SR for each DICOM image (needs vivid-monai[dicom-sr])"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images to a forward pass (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Answer, print a summary and return the exit status: 0, or 1 where nothing could be answered."""
    model = BundleModel.load(args.bundle, runtime=args.runtime)
    inputs = find_inputs(args.paths)
    done = predict(
        model,
        inputs,
        args.out,
        overlays=args.overlays,
        reports=args.reports,
        batch_size=args.batch_size,
        num_workers=args.workers,
    )
    counts = done.counts()
    told = ", ".join(f"{counts[status]:,} {status}" for status in ("answered", "not assessed", "unreadable"))
    print(f"\n{len(inputs):,} files: {told}" + (f"; {done.resumed:,} of them before" if done.resumed else ""))
    print(f"\nIn {args.out}:")
    for name, words in FILES.items():
        if (args.out / name).exists():
            print(f"  {name:18s} {words}")
    print(
        f"\nBy {model.name} {model.version}, {RUNTIMES[model.runtime]}: for research, no medical device. "
        f"Its limits: {args.bundle}/docs/README.md"
    )
    return 0 if counts[ANSWERED] else 1
