"""How the cost of a pretraining step grows: fields, questions, queries, image size and batch, one at a time.

    python scripts/bench_growth.py --tokenizer DIR
    python scripts/bench_growth.py --tokenizer DIR --ways "short slots" phrases --axes fields batch

Every point is scripts/bench_pretrain.py with one of its options changed and all others as they are by default; the ways
of a point take turns. Images per second, and in brackets MB of memory that a step takes at its highest.
"""

import argparse
from pathlib import Path
from typing import Any

from bench_pretrain import bench, parser

AXES: dict[str, list[dict[str, Any]]] = {
    "fields": [{"fields": n} for n in (4, 12, 32, 64)],
    "questions": [{"fields": 64, "asked": [n, n]} for n in (16, 64)],
    "queries": [{"groups": g, "queries": q} for g, q in ((1, 1), (4, 2), (8, 4), (16, 8))],
    "size": [{"size": n} for n in (112, 224, 384)],
    "batch": [{"batch": n} for n in (1, 4, 16)],
}


def main() -> None:
    own = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="tokenizer of Qwen2.5")
    own.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    own.add_argument("--ways", nargs="+", default=["slots", "short slots", "phrases"])
    own.add_argument("--rounds", type=int, default=3, help="turns of every way at a point (default: %(default)s)")
    asked = own.parse_args()
    print(f"| axis | point | {' | '.join(asked.ways)} |\n|{'---|' * (2 + len(asked.ways))}")
    for axis in asked.axes:
        for point in AXES[axis]:
            args = parser().parse_args(["--tokenizer", str(asked.tokenizer), "--rounds", str(asked.rounds)])
            vars(args).update(point, ways=asked.ways)
            rows = {row["way"]: row for row in bench(args)["ways"]}
            cells = [f"{rows[way]['images_per_s']:.3g} ({rows[way]['peak_mb']:.0f})" for way in asked.ways]
            print(f"| {axis} | {', '.join(f'{k} {v}' for k, v in point.items())} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
