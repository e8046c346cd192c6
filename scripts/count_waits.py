"""How often a training step makes the host wait for the GPU, and how many images a second that leaves.

    python scripts/count_waits.py --out FOLDER [--code CHECKOUT] [--knob vit=base --knob image_size=224 …]

The job is that of the README with 200 steps. PyTorch counts its own synchronising calls over steps 60 to 80, by the
line of this package that made them; steps 100 to 200 are timed. With ``--code`` another checkout
runs, for a comparison.
"""

import argparse
import json
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

STEPS = {"max_epochs": 1, "epoch_length": 200, "warmup_steps": 20, "phantom_images": 600, "n_examples": 0}
COUNTED, TIMED = (60, 80), (100, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the run and its phantoms go")
    parser.add_argument("--code", type=Path, default=Path(__file__).parents[1], help="the checkout to run")
    parser.add_argument("--knob", action="append", default=[], metavar="NAME=VALUE", help="of configs/train.json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("count_waits.py: there is no GPU here")
    sys.path.insert(0, str(args.code))
    import monai.bundle  # after the path: its configs import the package of the checkout

    knobs = STEPS | {name: read(value) for name, value in (one.split("=", 1) for one in args.knob)}
    knobs |= {"bundle_root": str(args.out), "output_dir": str(args.out / "run")}
    waits, times = watch()
    monai.bundle.run("training", config_file=str(args.code / "configs" / "train.json"), logging_file=False, **knobs)
    steps = COUNTED[1] - COUNTED[0]
    images = (TIMED[1] - TIMED[0]) * int(knobs.get("batch_size", 16))
    result = {
        "waits_per_step": round(sum(waits.values()) / steps, 2),
        "by_line": waits.most_common(12),
        "images_per_s": round(images / (times[1] - times[0]), 1),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "knobs": {name: value for name, value in knobs.items() if name not in ("bundle_root", "output_dir")},
    }
    print(json.dumps(result))


def read(value: str) -> Any:
    """A knob as JSON, or as the word it is."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def watch() -> tuple[Counter[str], list[float]]:
    """Count from now on what waits in steps ``COUNTED``, and note when steps ``TIMED`` end; both are filled later."""
    waits: Counter[str] = Counter()
    times: list[float] = []
    done, real = 0, torch.optim.AdamW.step

    def show(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours(traceback.extract_stack())]
            waits[frames[-1] if frames else "elsewhere"] += 1

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        result = real(self, *args, **kwargs)
        done += 1
        if done == COUNTED[0]:
            warnings.simplefilter("always")
            warnings.showwarning = show
            torch.cuda.set_sync_debug_mode("warn")
        if done == COUNTED[1]:
            torch.cuda.set_sync_debug_mode("default")
        if done in TIMED:
            torch.cuda.synchronize()
            times.append(time.perf_counter())
        return result

    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    return waits, times


def ours(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """The frames of a stack that are of this package."""
    return [frame for frame in stack if "vivid_monai" in Path(frame.filename).parts]


if __name__ == "__main__":
    main()
