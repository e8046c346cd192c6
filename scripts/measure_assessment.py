"""Which images unlike the training ones are refused, and how many like them: several criteria as a Markdown table.

    python scripts/measure_assessment.py --weights run/pretrained_vit.safetensors --manifest data/nih/manifest.parquet \
        --other "laterals=laterals.txt" --other "phantoms, lateral=data/phantom/manifest.parquet@lateral" \
        --cut "photographs=photographs" --volume "abdomen=abdomen.nii.gz" --json assessment.json

The limit of every criterion is found as OODDetector.fit does. There are always: the test images turned, mirrored and
inverted, constant images, noise and text. A cell is the share refused with its 95 % Wilson interval, as if images were
independent, and the AUROC of the distance against the test images.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from vivid_monai.data.manifest import Manifest
from vivid_monai.deploy.ood import OODDetector, conformal_limit, mahalanobis, unfitted
from vivid_monai.deploy.ood_score import thumbnail_features
from vivid_monai.evaluation.encoders import Encoder, load_encoder
from vivid_monai.images.preprocess import Preprocess, transform_of
from vivid_monai.images.read import ImageError, read_image
from vivid_monai.ums.states import PRESENT

DEFAULT = "appearance"
WINDOWS = {"lung window": (-600, 1500), "soft tissue window": (40, 400)}
WORDS = np.array(
    ["lungs", "clear", "effusion", "heart", "of", "normal", "size", "12", "May", "findings", "no", "report"]
)
Rows = dict[str, np.ndarray]


def neighbours(train: np.ndarray):
    """Distance of the tenth nearest training image, features scaled to length 1 (Sun et al. 2022, arXiv:2204.06507)."""

    def unit(x: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.from_numpy(np.asarray(x, np.float64)))

    known = unit(train)
    return lambda x: torch.cdist(unit(x), known).topk(10, largest=False).values[:, -1].numpy()


def residual(train: np.ndarray):
    """What the five first principal components of the training images leave over."""
    mean = train.mean(0)
    components = np.linalg.svd(train - mean, full_matrices=False)[2][:5]
    return lambda x: np.linalg.norm((x - mean) - (x - mean) @ components.T @ components, axis=1)


CRITERIA = {
    "features": (("features",), mahalanobis),
    "features, k-NN": (("features",), neighbours),
    "thumbnail, PCA residual": (("thumbnail",), residual),
    "features and appearance": (("features", "appearance"), mahalanobis),
    DEFAULT: (("appearance",), mahalanobis),
}


class Describer:
    """Images in [0, 1] of any size → what the criteria are about, row by row."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        preprocess: Preprocess = encoder.preprocess
        self.square = transform_of(preprocess.config(stages=["stored", "unit"])[1:])
        self.normal = preprocess.transform(stages=["normal"])

    def squares(self, images: Iterable[np.ndarray]) -> list[np.ndarray]:
        """(H, W) each → (size, size) each, in [0, 1]."""
        ready = (torch.from_numpy(np.ascontiguousarray(one, np.float32))[None] for one in images)
        return [np.asarray(self.square({"image": one})["image"])[0] for one in ready]

    @torch.inference_mode()
    def rows(self, squares: list[np.ndarray]) -> Rows:
        """Images of the network's size → name → (N, D)."""
        batches: dict[str, list[torch.Tensor]] = {"features": [], "appearance": [], "thumbnail": []}
        for start in range(0, len(squares), 64):
            unit = [torch.from_numpy(one.copy())[None] for one in squares[start : start + 64]]
            images = torch.stack([torch.as_tensor(self.normal({"image": one})["image"]) for one in unit])
            batches["features"].append(self.encoder(images))
            batches["appearance"].append(thumbnail_features(images))
            batches["thumbnail"].append(adaptive_avg_pool2d(torch.stack(unit), 16).flatten(1))
        return {name: torch.cat(parts).numpy() for name, parts in batches.items()}


def read(paths: Iterable[Path | str], window: tuple[float, float] | None) -> Iterator[np.ndarray]:
    """Images (H, W) of files; what cannot be read is left out."""
    for path in paths:
        try:
            yield read_image(path, window=window)[0]
        except ImageError as error:
            print(f"left out: {error}", file=sys.stderr)


def files(where: str) -> list[Path | str]:
    """The images of a folder, of a text file with a path in each line, or of a manifest's test split, "@" a view."""
    path, _, view = where.partition("@")
    if path.endswith(".parquet"):
        return select(Manifest.load(path), "test", [view] if view else None)[0]
    if path.endswith(".txt"):
        return [line for line in Path(path).read_text().splitlines() if line]
    return sorted(file for file in Path(path).iterdir() if file.is_file())


def select(manifest: Manifest, split: str, views: list[str] | None) -> tuple[list[Path | str], Rows]:
    """Image paths of a split, and patient, view and whether a finding is present, row by row."""
    part = manifest.select(split)
    seen = np.array([view or "" for view in part.table["view"].to_pylist()])
    kept = np.flatnonzero(np.isin(seen, views) if views else np.ones(len(seen), bool))
    ill = (part.states() == PRESENT)[:, [name != "No Finding" for name in part.fields]].any(1)
    about = {"patient": part.patients()[kept], "view": seen[kept], "ill": ill[kept]}
    items = part.items()
    return [items[row]["image"] for row in kept], about


def cut(images: Iterable[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Six squares out of each image, with sides of 0.3 to 0.8 of its shorter one."""
    for image in images:
        for _ in range(6):
            side = int(min(image.shape) * rng.uniform(0.3, 0.8))
            top, left = (rng.integers(0, n - side + 1) for n in image.shape)
            yield image[top : top + side, left : left + side]


def text(rng: np.random.Generator, n: int = 60) -> Iterator[np.ndarray]:
    """Lines of words, dark on white and white on dark in turn."""
    for i in range(n):
        page, size = Image.new("L", (256, 256), 255), int(rng.integers(8, 28))
        font, draw = ImageFont.load_default(size), ImageDraw.Draw(page)
        for top in range(4, 250, int(1.3 * size)):
            draw.text((4, top), " ".join(rng.choice(WORDS, 8)), fill=int(rng.integers(0, 80)), font=font)
        pixels = np.asarray(page, np.float32) / 255
        yield pixels if i % 2 else 1 - pixels


def smooth_noise(rng: np.random.Generator, n: int = 60) -> Iterator[np.ndarray]:
    """Clouds of many sizes."""
    for _ in range(n):
        clouds = gaussian_filter(rng.standard_normal((256, 256)), rng.uniform(2, 40))
        yield (clouds - clouds.min()) / (clouds.max() - clouds.min())


def volume(name: str, path: str, rng: np.random.Generator) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Every fourth axial slice of a CT; 24 crops each of its means from front to back and from side to side."""
    values = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata(dtype=np.float32)
    for window, (centre, width) in WINDOWS.items():
        shown = np.clip((values - centre) / width + 0.5, 0, 1)
        yield f"{name}: CT slices, {window}", [shown[:, ::-1, k].T for k in range(0, values.shape[2], 4)]
    for view, axis in (("coronal", 1), ("sagittal", 0)):
        projection, drawn = np.clip(values, -1000, 1500).mean(axis).T[::-1], []
        for _ in range(24):
            side = int(min(projection.shape) * rng.uniform(0.7, 1))
            top, left = (rng.integers(0, n - side + 1) for n in projection.shape)
            crop = projection[top : top + side, left : left + side]
            low, high = np.percentile(crop, [1, 99])
            drawn.append(np.clip((crop - low) / (high - low), 0, 1) ** rng.choice([0.6, 1, 1.6]))
        yield f"{name}: {view} projections", drawn


def groups(args: argparse.Namespace, test: list[np.ndarray], make: Describer) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Name → images of the network's size, of everything that the training images are not."""
    window, rng = make.encoder.preprocess.window, np.random.default_rng(0)
    for name, where in args.other:
        yield name, make.squares(read(files(where), window))
    for name, where in args.cut:
        yield name, make.squares(read(files(where), window))
        yield f"{name}: squares", make.squares(cut(read(files(where), window), rng))
    for name, where in args.volume:
        for part, images in volume(name, where, rng):
            yield part, make.squares(images)
    for part, turned in (("90°", 1), ("180°", 2)):
        yield f"test images turned by {part}", [np.rot90(one, turned) for one in test]
    yield "test images, left and right exchanged", [one[:, ::-1] for one in test]
    yield "test images inverted", [1 - one for one in test]
    yield "constant", make.squares(np.full((256, 256), value) for value in np.linspace(0, 1, 21))
    yield "uniform noise", make.squares(rng.random((256, 256)) for _ in range(60))
    yield "normal noise", make.squares(np.clip(rng.normal(0.5, 0.25, (256, 256)), 0, 1) for _ in range(60))
    yield "smooth noise", make.squares(smooth_noise(rng))
    yield "text", make.squares(text(rng))


def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    centre, half = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, (centre - half) / (n + z * z)), min(1.0, (centre + half) / (n + z * z))


def main() -> None:
    args = arguments()
    encoder = load_encoder(args.weights, pool=args.pool)
    make, manifest = Describer(encoder), Manifest.load(args.manifest)
    squares, rows, about = {}, {}, {}
    for split in ("train", "val", "test"):
        paths, about[split] = select(manifest, split, args.views)
        squares[split] = make.squares(read(tqdm(paths, split, leave=False), encoder.preprocess.window))
        if len(squares[split]) < len(paths):
            raise SystemExit(f"{split}: images cannot be read; mend the manifest")
        rows[split] = make.rows(squares[split])
    patients = (about["train"]["patient"], about["val"]["patient"])
    scorers = {name: fit(name, rows, patients, args.accepted) for name in CRITERIA}

    test, seen, ill = rows["test"], about["test"]["view"], about["test"]["ill"]
    shown = {"test images": test}
    parts = {f"test images, {view}": seen == view for view in np.unique(seen)}
    parts |= {"test images with findings": ill, "test images without": ~ill}
    shown |= {name: {key: value[kept] for key, value in test.items()} for name, kept in parts.items() if kept.any()}
    shown |= {name: make.rows(images) for name, images in tqdm(groups(args, squares["test"], make), leave=False)}
    views = ", ".join(f"{n} {view}" for view, n in Counter(about["train"]["view"]).items())
    print(f"{encoder.source}: {views} training images; {promise(rows, patients, args.accepted)}\n")
    report(shown, scorers, args.json)


def fit(name: str, rows: dict[str, Rows], patients: tuple[np.ndarray, np.ndarray], accepted: float):
    """Rows → distance over limit, (N,): refused above 1."""
    parts, kind = CRITERIA[name]

    def joined(group: Rows) -> np.ndarray:
        return np.concatenate([group[part] for part in parts], axis=1)

    train, validation = joined(rows["train"]), joined(rows["val"])
    limit = conformal_limit(unfitted(kind, train, validation, patients, accepted=accepted)[0], accepted)
    distance = kind(train)
    return lambda group: distance(joined(group)) / limit


def promise(rows: dict[str, Rows], patients: tuple[np.ndarray, np.ndarray], accepted: float) -> str:
    """What OODDetector says of its own rate."""
    one = OODDetector.fit(rows["train"][DEFAULT], rows["val"][DEFAULT], patients=patients, accepted=accepted)
    share, low, high = one.refused()
    return f"to be refused of such images: {share:.1%} ({low:.1%} to {high:.1%}; {one.n_images} images)"


def report(shown: dict[str, Rows], scorers: dict, path: str | None) -> None:
    """Print the table; write all of it as JSON where a path is given."""
    results: dict[str, dict] = {}
    print("| images | n | " + " | ".join(scorers) + " |\n" + "| --- " * (len(scorers) + 2) + "|")
    for group, rows in shown.items():
        n, cells = len(rows["features"]), []
        for name, score in scorers.items():
            inside, scores = score(shown["test images"]), score(rows)
            refused = int((scores > 1).sum())
            low, high = wilson(refused, n)
            auroc = roc_auc_score(np.repeat([0, 1], [len(inside), n]), np.concatenate([inside, scores]))
            cells.append(f"{100 * refused / n:.0f} % ({100 * low:.0f}–{100 * high:.0f}), {auroc:.2f}")
            results.setdefault(group, {"n": n})[name] = {"refused": refused, "interval": [low, high], "auroc": auroc}
        print(f"| {group} | {n} | " + " | ".join(cells) + " |")
    if path:
        Path(path).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Command line."""

    def named(value: str) -> list[str]:
        name, equals, where = value.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{value}: write NAME=PATH")
        return [name, where]

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", required=True, help="encoder, as load_encoder takes it")
    parser.add_argument("--manifest", required=True, help="the data set that it was trained on")
    parser.add_argument("--views", nargs="+", help="view positions that count as trained (default: all)")
    parser.add_argument("--pool", default="cls")
    parser.add_argument("--accepted", type=float, default=0.99)
    parser.add_argument("--json", help="where the table goes as JSON")
    where = "a folder, a .txt of paths, or a manifest's test split (MANIFEST or MANIFEST@VIEW)"
    for option, told in (("--other", where), ("--cut", where + ", and squares out of it"), ("--volume", "a NIfTI CT")):
        parser.add_argument(option, type=named, action="append", default=[], metavar="NAME=PATH", help=told)
    return parser.parse_args()


if __name__ == "__main__":
    main()
