"""``vivid export``: the classifier of a bundle as a file or folder for other programs."""

import argparse
from pathlib import Path
from typing import Any

from vivid_monai.deploy.formats.huggingface import export_huggingface
from vivid_monai.deploy.formats.onnx import export_onnx
from vivid_monai.deploy.formats.torchscript import export_torchscript
from vivid_monai.deploy.model import BundleModel

FORMATS: dict[str, tuple[Any, str]] = {
    "huggingface": (export_huggingface, "a folder that transformers' Auto classes load"),
    "torchscript": (export_torchscript, "a file that PyTorch loads in Python and C++"),
    "onnx": (export_onnx, "a file for any runtime"),
}
"""Each format: what writes it, and what it is."""


def register(subparsers: Any, *, summary: str = "") -> None:
    """Add the subcommand to the parser of ``vivid``."""
    parser = subparsers.add_parser(
        "export",
        help=summary,
        description="Write the classifier of a bundle in another format. It gives calibrated logits (their "
        "sigmoids are the probabilities), holds preprocessing and names of the findings, and is held against PyTorch "
        "before it takes its place. Thresholds stay with the bundle, and so does what is not assessed.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of a bundle of `vivid bundle`")
    words = "; ".join(f"{name}: {words}" for name, (_, words) in FORMATS.items())
    parser.add_argument("--to", choices=tuple(FORMATS), required=True, help=words)
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="file or folder to write")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write, tell what was written, and return the exit status."""
    model = BundleModel.load(args.bundle, runtime="torch")
    write, words = FORMATS[args.to]
    path = write(model.classifier, args.out, preprocess=model.preprocess, fields=model.answers.fields)
    files = [path] if path.is_file() else path.iterdir()
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{path}: {words}, {size:.1f} MB; its logits are PyTorch's to 1e-4")
    return 0
