"""Images per second of processor time on one core: from files, from memory, and from the cache on disk.

    python scripts/bench_loading.py                # 256-pixel PNG files to 224 pixels
    python scripts/bench_loading.py --augment default    # as the default run: no affine map

Prints a Markdown table; ratios are to "files" of the same column. "Evaluation" is normalised images, "training" the
batches that a trainer takes: drawn item by item, augmented at once. Each rate is the best of some passes, which take
turns, so that other programs disturb all alike. After its pages are dropped a file is read from the disk again; what
that takes is waiting, not processor time, and is told as wall time.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import image_loader
from vivid_monai.data.manifest import Manifest
from vivid_monai.engines.step import PrepareBatch
from vivid_monai.images.augment import Augment, RandomAugmentation
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.prepare.phantoms import prepare

AUGMENTS = {"paper": Augment(), "default": Augment(rotate=0, translate=0, scale=0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="phantoms to make and read (default: %(default)s)")
    parser.add_argument("--from-size", type=int, default=256, help="pixels of the files (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the network's input (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=1, help="channels of the network's input (default: 1)")
    parser.add_argument("--batch", type=int, default=32, help="images of a batch (default: %(default)s)")
    parser.add_argument("--augment", choices=list(AUGMENTS), default="paper", help="default: %(default)s")
    parser.add_argument("--passes", type=int, default=5, help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    preprocess = Preprocess(size=args.size, channels=args.channels)
    augmentation = RandomAugmentation(preprocess, AUGMENTS[args.augment])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "cache"
        items = Manifest.load(prepare(Path(temporary) / "phantoms", n=args.images, size=args.from_size)).items()
        wall, cpu = time.perf_counter(), time.process_time()
        on_disk = {"evaluation": ImageDataset(items, preprocess, cache=folder)}
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        options: dict[str, Any] = {"augmentation": augmentation}
        on_disk["training"] = ImageDataset(items, preprocess, **options, cache=folder)
        sources = {
            "files": {
                "evaluation": ImageDataset(items, preprocess),
                "training": ImageDataset(items, preprocess, **options),
            },
            "memory": {
                "evaluation": ImageDataset(items, preprocess, cache=True),
                "training": ImageDataset(items, preprocess, **options, cache=True),
            },
            "cache on disk": on_disk,
            "cache on disk, pages dropped": on_disk,
        }
        best: dict[tuple[str, str], tuple[float, float]] = {}
        for _ in range(args.passes):
            for source, ways in sources.items():
                for way, dataset in ways.items():
                    if source.endswith("dropped"):
                        drop(folder.rglob("pixels.npy"))
                    got = seconds(dataset, args.batch)
                    best[source, way] = min(got, best.get((source, way), got))
        size = sum(file.stat().st_size for file in folder.rglob("pixels.npy"))
    print(
        f"\n{args.images} PNG files of {args.from_size} px to {args.size} px, {args.channels} channels, batches of "
        f"{args.batch}, augmentation '{args.augment}'; one core\n\n"
        "| images from | evaluation, images/s | | training, images/s | | training, wall, images/s |\n"
        "|---|---|---|---|---|---|"
    )
    for source in sources:
        rates = [1 / best[source, way][0] for way in ("evaluation", "training")]
        ratios = [rate * best["files", way][0] for rate, way in zip(rates, ("evaluation", "training"), strict=True)]
        cells = " | ".join(f"{rate:,.0f} | {ratio:.1f}×" for rate, ratio in zip(rates, ratios, strict=True))
        print(f"| {source} | {cells} | {1 / best[source, 'training'][1]:,.0f} |")
    print(
        f"\nbuilding the cache: {wall:.2f} s ({args.images / wall:,.0f} images/s; {args.images / cpu:,.0f} of "
        f"processor time) for {size / 1e6:.1f} MB"
    )


def seconds(dataset: ImageDataset, batch: int) -> tuple[float, float]:
    """Seconds for each image over one pass: of processor time, and wall time."""
    prepare_batch = dataset.augmentation and PrepareBatch(dataset.augmentation)
    batches = iter(image_loader(dataset, batch, seed=0))
    steps = len(dataset) // batch
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(steps):
        one = next(batches)
        if prepare_batch:
            prepare_batch(one)
    return (time.process_time() - cpu) / steps / batch, (time.perf_counter() - wall) / steps / batch


def drop(files: Iterable[Path]) -> None:
    """Ask the system to forget the pages of files that it keeps in memory; pages that a process maps may stay."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
