"""Whether the memory of a pretraining run stays flat: the default run, small and long, with all its handlers.

    python scripts/soak.py --steps 10000 --layout short_slots

The resident memory is told every so many steps, after a collection: the figure of the curves, which is drawn anew with
every save, leaves cycles, and Python lets them pile up to tens of MB before it clears them away. The slope is a
regression over the second half of the steps: the first half fills caches (images, texts, the allocator's own), which a
leak outlives.
"""

import argparse
import gc
import tempfile
from pathlib import Path

from ignite.engine import Events
from monai.bundle import ConfigParser
from scipy.stats import linregress, t

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="optimisation steps (default: %(default)s)")
    parser.add_argument("--every", type=int, default=500, help="steps between two readings (default: %(default)s)")
    parser.add_argument("--layout", choices=["slots", "short_slots", "published", "phrases"], default="short_slots")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=64, help="pixels (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readings = soak(args, folder)
    half = [reading for reading in readings if reading[0] > args.steps // 2]
    fit = linregress(*zip(*half, strict=True))
    margin = t.ppf(0.975, len(half) - 2) * fit.stderr
    low, high = 1000 * (fit.slope - margin), 1000 * (fit.slope + margin)
    slope = f"{1000 * fit.slope:+.0f} kB per 1,000 steps ({low:+.0f} to {high:+.0f})"
    print(f"slope over the last {len(half)} readings: {slope}")


def soak(args: argparse.Namespace, folder: str) -> list[tuple[int, int]]:
    """Train, and return (step, resident kB) at every reading."""
    config = ConfigParser()
    config.read_config(ROOT / "configs" / "train.json")
    config.update(
        {
            "bundle_root": folder,
            "phantom_images": 200,
            "image_size": args.image_size,
            "batch_size": args.batch_size,
            "layout": args.layout,
            "max_epochs": args.steps // args.every,
            "epoch_length": args.every,
            "save_every": args.every,
            "val_images": 20,
            "rotate": 10.0,
            "translate": 0.05,
            "scale": 0.05,
        }
    )
    config.get_parsed_content("initialize")
    trainer = config.get_parsed_content("train#trainer")
    readings: list[tuple[int, int]] = []

    def read() -> None:
        gc.collect()
        readings.append((trainer.state.iteration, resident()))
        print("step {:6d}: {:,} kB".format(*readings[-1]), flush=True)

    trainer.add_event_handler(Events.EPOCH_COMPLETED, read)
    trainer.run()
    return readings


def resident() -> int:
    """kB of memory that this process holds."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
