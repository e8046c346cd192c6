"""Images per second of processor time on one core: from files and from the cache, with and without augmentation.

python scripts/bench_loading.py            # 256-pixel PNG files to 224 pixels
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from monai.transforms import Compose

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import image_loader
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.phantom import prepare
from vivid_monai.data.preprocess import Preprocess
from vivid_monai.data.transforms import train_transform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=256, help="phantoms to make and read (default: %(default)s)")
    parser.add_argument("--from-size", type=int, default=256, help="pixels of the files (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of the network's input (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    preprocess = Preprocess(size=args.size)
    with tempfile.TemporaryDirectory() as folder:
        items = Manifest.load(prepare(Path(folder) / "phantoms", n=args.images, size=args.from_size)).items()
        for name, transform in (("plain", preprocess.transform()), ("augmented", train_transform(preprocess))):
            rates = {cache: rate(items, transform, cache=cache) for cache in (False, True)}
            print(f"{name:10s} from files {rates[False]:6.0f}/s   from the cache {rates[True]:6.0f}/s")


def rate(items: list[dict], transform: Compose, *, cache: bool, batch: int = 32) -> float:
    """Images per second of processor time over one pass, the filling of the cache left out."""
    batches = iter(image_loader(ImageDataset(items, transform, cache=cache), batch, seed=0))
    next(batches)
    start = time.process_time()
    steps = len(items) // batch
    for _ in range(steps):
        next(batches)
    return steps * batch / (time.process_time() - start)


if __name__ == "__main__":
    main()
