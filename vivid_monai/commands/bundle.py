"""``vivid bundle``, ``vivid export``, ``vivid predict``: make a bundle of a run, export its classifier, use it."""

import argparse
from pathlib import Path
from typing import Any

from vivid_monai.deploy.bundle import WORDING, build_bundle
from vivid_monai.deploy.calibration import CalibratedModel, load_calibrated
from vivid_monai.deploy.eligibility import TAGS
from vivid_monai.deploy.export import export_huggingface, export_onnx, export_torchscript
from vivid_monai.deploy.further import load_further
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import RUNTIMES, BundleModel
from vivid_monai.deploy.postprocessing import ANSWERED, NOT_ASSESSED, UNREADABLE
from vivid_monai.deploy.predict import FILES, predict
from vivid_monai.errors import VividError
from vivid_monai.evaluation.format import summary_table
from vivid_monai.storage.files import tracked_by_git

FORMATS: dict[str, tuple[Any, str]] = {
    "huggingface": (export_huggingface, "a folder that transformers' Auto classes load"),
    "torchscript": (export_torchscript, "a file that PyTorch loads in Python and C++"),
    "onnx": (export_onnx, "a file for any runtime"),
}
"""Each format: what writes it, and what it is."""


def add_bundle(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of the run: a training, or an evaluation; or a bundle")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the bundle; it ends in _classification")
    what = "of an evaluation: the encoder's name there (default: the first that is no baseline)"
    add("--encoder", metavar="NAME", help=what)
    what = (
        "the run's data set (manifest.parquet, or its folder), or its data sets in their order (default: as in the run)"
    )
    add("--manifest", type=Path, nargs="+", metavar="FILE|DIR", help=what)
    what = (
        "with a bundle: weights of its network, as its configs/train.json writes them (eval/model.pt); with --manifest"
    )
    add("--weights", type=Path, metavar="FILE", help=what)
    what = "what these weights answer, in the order of the labels (default: the bundle's findings)"
    add("--fields", nargs="+", metavar="FINDING", help=what)
    share = "share of {} validation images that '{}' may not be said of"
    add("--sensitivity", type=float, default=0.9, help=share.format("present", "absent"))
    add("--specificity", type=float, default=0.9, help=share.format("absent", "present"))
    what = "share of images like the training ones that is to be answered; with less, more of the others are refused"
    add("--accepted", type=float, default=0.99, help=what)
    what = (
        "what `vivid predict` runs, by ONNX Runtime: float32, the answers of PyTorch, faster; int8, a third of the "
        "time and a quarter of the size, refused where it changes an AUROC by over .002; none: PyTorch itself"
    )
    add("--onnx", choices=("float32", "int8", "none"), default="float32", help=what)
    add("--force", action="store_true", help="also write over a bundle that git tracks")
    add("--title", default="", help="name for people (default: the kind of image, findings by a VIVID-Med ViT)")
    add("--version", default=WORDING["version"], help="version of the bundle")
    add("--authors", default=WORDING["authors"], help="of the bundle")
    add("--copyright", default=WORDING["copyright"], help="of the bundle")
    add("--data-license", type=Path, metavar="FILE", help="conditions of the data, for data_license.txt")
    add("--weights-url", default="", metavar="URL", help="folder of files of over 25 MB, for large_files.yml")


def run_bundle(args: argparse.Namespace) -> int:
    """Calibrate the classifier of a finished run, or of a bundle that was trained further, on validation images, choose
    its decision thresholds, and write a self-contained MONAI bundle that needs no package but MONAI."""
    if not args.force and (tracked := tracked_by_git(args.out)):
        raise VividError(
            f"{args.out}: git tracks {tracked} there, which would be replaced; give another --out, or --force"
        )
    rates = {name: getattr(args, name) for name in ("sensitivity", "specificity", "accepted")}
    if args.weights or args.fields or (args.run / "configs" / "metadata.json").is_file():
        model = _trained_further(args, rates)
    else:
        model = load_calibrated(args.run, encoder=args.encoder, manifest=args.manifest, **rates)
    wording = {name: getattr(args, name) for name in WORDING}
    wording["data_license"] = args.data_license.read_text(encoding="utf-8") if args.data_license else ""
    folder = build_bundle(model, args.out, onnx=None if args.onnx == "none" else args.onnx, wording=wording)
    print(f"\n{folder}: {len(model.answered)} of {len(model.fields)} findings are answered")
    for one in model.calibrations:
        if one.unanswered:
            print(f"  not answered: {one.field}: {one.unanswered}")
    print(
        f"\nNext: read {folder / 'docs' / 'README.md'}; run it from that folder: python -m monai.bundle run "
        "--config_file configs/inference.json --dataset_dir IMAGES"
    )
    return 0


def _trained_further(args: argparse.Namespace, rates: dict[str, Any]) -> CalibratedModel:
    if not args.weights or not args.manifest or args.encoder:
        raise VividError(
            f"{args.run}: a bundle is built again of weights that were trained further: give --weights FILE and "
            "--manifest DATA, and no --encoder"
        )
    model = load_further(args.run, args.weights, args.manifest, fields=args.fields, **rates)
    print("\n" + summary_table(model.results))
    return model


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of a bundle of `vivid bundle`")
    words = "; ".join(f"{name}: {words}" for name, (_, words) in FORMATS.items())
    parser.add_argument("--to", choices=tuple(FORMATS), required=True, help=words)
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="file or folder to write")


def run_export(args: argparse.Namespace) -> int:
    """Write the classifier of a bundle in another format. It gives calibrated logits (their sigmoids are the
    probabilities), holds preprocessing and names of the findings, and is compared with PyTorch before it takes its
    place. Decision thresholds stay with the bundle, and so does out-of-distribution detection."""
    model = BundleModel(args.bundle, runtime="torch")
    write, words = FORMATS[args.to]
    path = write(model.classifier, args.out, preprocess=model.preprocess, fields=model.fields)
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())) / 1e6
    print(f"{path}: {words}, {size:.1f} MB; its logits are PyTorch's to 1e-4")
    return 0


def add_answering(parser: argparse.ArgumentParser) -> None:
    """The options that decide what is answered."""
    add = parser.add_argument
    add("--bundle", type=Path, required=True, metavar="DIR", help="bundle of `vivid bundle`")
    what = "onnx: ONNX Runtime, torch: PyTorch (default: ONNX Runtime, where the bundle was built for it)"
    add("--runtime", choices=tuple(RUNTIMES), help=what)
    what = f"answer although this tag, or this word of it, forbids it, and say so in the records: {', '.join(TAGS)}"
    add("--accept", action="append", default=[], metavar="TAG[=WORD]", help=what)


def add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="an image or a folder of images")
    add_answering(parser)
    add("--out", type=Path, default=Path("predictions"), metavar="DIR", help="where the answers go")
    add("--overlays", action="store_true", help="draw which parts speak for the most probable findings")
    add("--reports", action="store_true", help="write a DICOM SR for each DICOM image (needs vivid-monai[dicom-sr])")
    add("--batch-size", type=int, default=8, help="images to a forward pass")
    add("--workers", "--num-workers", type=int, default=0, metavar="N", help="processes that read images")


def run_predict(args: argparse.Namespace) -> int:
    """Predict the findings of DICOM, PNG and JPEG files, NIfTI of one slice, and all files in folders, by a bundle. An
    image unlike those that the model was trained on is not assessed; a file that cannot be read is listed.
    Interrupted, the same command predicts what is missing. The exit status is 1 where nothing could be answered, or a
    folder could not be entered."""
    if not args.out.parts:
        raise VividError("--out is empty, as of a shell variable that is not set; give a folder")
    inputs, model = find_inputs(args.paths), BundleModel(args.bundle, runtime=args.runtime)
    options = {name: getattr(args, name) for name in ("overlays", "reports", "accept", "batch_size")}
    done = predict(model, inputs, args.out, num_workers=args.workers, **options)
    counts = done.counts()
    summary = ", ".join(f"{counts[status]:,} {status}" for status in (ANSWERED, NOT_ASSESSED, UNREADABLE))
    print(f"\n{len(inputs):,} files: {summary}" + (f"; {done.resumed:,} of them before" if done.resumed else ""))
    print(f"\nIn {args.out}:")
    for name, words in FILES.items():
        if (args.out / name).exists():
            print(f"  {name:18s} {words}")
    print(
        f"\nBy {model.name} {model.version}, {RUNTIMES[model.runtime]}: for research, no medical device. "
        f"Its limits: {args.bundle}/docs/README.md"
    )
    if done.unseen:
        print(f"\n{len(done.unseen)} folders or files could not be entered: {args.out / 'unreadable.csv'}")
    return 0 if counts[ANSWERED] and not done.unseen else 1
