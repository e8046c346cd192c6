"""Damage images and bundles at random and predict from them: no crash, no answer from what cannot be read.

Damages a DICOM, a PNG and a JPEG file (given, or made), answers all damaged files in one run, and loads the bundle with
its metadata.json and its weights damaged. Prints what became of them; exits with 1 at the first thing that must not be.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.deploy.made_dicom import dicom
from tests.deploy.mutate import mutations
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.predict import predict
from vivid_monai.errors import VividError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle of `vivid bundle`")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="files to damage as well")
    parser.add_argument("--n", type=int, default=1000, help="damaged files in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return fuzz(args, Path(folder))


def fuzz(args: argparse.Namespace, folder: Path) -> int:
    model = BundleModel(args.bundle)
    sources = [*args.images, *made(folder)]
    each = args.n // (len(sources) + 2)
    damaged = folder / "damaged"
    damaged.mkdir()
    for s, source in enumerate(sources):
        for i, content in enumerate(mutations(source.read_bytes(), each, seed=args.seed + s)):
            (damaged / f"{s}-{i:05d}{source.suffix}").write_bytes(content)
    done = predict(model, find_inputs([damaged]), folder / "out")
    wrong = [one for one in done.entries if one.status != "answered" and (not one.reason or "\n" in one.reason)]
    cut = [one for one in done.entries if one.status == "answered" and is_cut(Path(one.image.path), sources)]
    print(f"{len(done.entries)} damaged images: {dict(done.counts())}")
    by_kind = Counter((Path(one.image.path).suffix, one.status) for one in done.entries)
    for (suffix, status), number in sorted(by_kind.items()):
        print(f"  {suffix:6s} {status:13s} {number}")
    outcome: Counter[str] = Counter()
    copy = folder / args.bundle.resolve().name
    image = find_inputs([sources[-1]])
    expected = predict(model, image, folder / "whole").entries[0]
    for name in ("configs/metadata.json", "models/model.pt"):
        for i, content in enumerate(
            tqdm(mutations((args.bundle / name).read_bytes(), each, seed=args.seed), total=each)
        ):
            shutil.rmtree(copy, ignore_errors=True)
            for part in ("configs/metadata.json", "models/model.pt"):
                (copy / part).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(args.bundle / part, copy / part)
            (copy / name).write_bytes(content)
            try:
                same = predict(BundleModel(copy), image, folder / f"{name[0]}{i}").entries[0] == expected
                outcome[f"{name}: {'the same answer' if same else 'ANOTHER ANSWER'}"] += 1
            except VividError as error:
                outcome[f"{name}: refused" + (" IN SEVERAL LINES" if "\n" in str(error) else "")] += 1
    for what, number in sorted(outcome.items()):
        print(f"  {what}: {number}")
    for one in (*wrong, *cut):
        print(f"MUST NOT BE: {one}")
    return 1 if wrong or cut or any(what.isupper() for words in outcome for what in words.split()) else 0


def is_cut(path: Path, sources: list[Path]) -> bool:
    """Whether the file is a shorter beginning of its source, by more than what viewers do without at the end."""
    source = sources[int(path.name.split("-")[0])]
    content, whole = path.read_bytes(), source.read_bytes()
    return len(content) < len(whole) - 16 and whole.startswith(content)


def made(folder: Path) -> list[Path]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 250), dtype=np.uint8))
    files = [folder / "made.png", folder / "made.jpg"]
    for file in files:
        image.save(file)
    return [*files, Path(dicom(folder / "made.dcm"))]


if __name__ == "__main__":
    sys.exit(main())
