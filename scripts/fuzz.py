"""Try what nobody thought of: inputs drawn at random, each with an answer that is worked out without the package.

    python scripts/fuzz.py --minutes 120 --seed 1      # every entrance in turn
    python scripts/fuzz.py --only tables --seed 7      # one of them

Ends at the first failure, which is shrunk to a small input and printed with the seed that finds it again. `dicoms`
needs DCMTK's dcmj2pnm, `monailabel` a Python with MONAI Label in $VIVID_MONAILABEL_PYTHON; what is not at hand is told.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["TQDM_DISABLE"] = "1"  # of hundreds of small runs

from tests.fuzz import bundles, checkpoints, dicoms, images, long_tables, mappings, monailabel, records, tables, tags

CHOICES = st.randoms(use_true_random=False) | st.randoms(use_true_random=True)  # the first shrink, the others vary more
ENTRANCES: dict[str, tuple[Any, Callable[[Any], str]]] = {
    "tables": (tables.tables(), tables.check),
    "long_tables": (CHOICES, long_tables.check),
    "mappings": (CHOICES, mappings.check),
    "records": (CHOICES, records.check),
    "dicoms": (CHOICES, dicoms.check),
    "images": (CHOICES, images.check),
    "tags": (CHOICES, tags.check),
    "checkpoints": (CHOICES, checkpoints.check),
    "bundles": (CHOICES, bundles.check),
    "monailabel": (CHOICES, monailabel.check),
}
"""Name → what an input is drawn from, and what checks it and says in a word what became of it."""
MISSING = [name for name, one in {"dicoms": dicoms, "monailabel": monailabel}.items() if not one.AT_HAND]
EXAMPLES = 50
"""Inputs to a seed."""


def campaign(name: str, number: int, outcomes: Counter[str]) -> None:
    """The inputs of one seed; raises what a check raises, for the smallest input that makes it."""
    strategy, check = ENTRANCES[name]

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(strategy)
    def try_all(one: Any) -> None:
        outcomes[f"{name}: {check(one)}"] += 1

    try_all()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2, metavar="N", help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first seed (default: %(default)s)")
    at_hand = [name for name in ENTRANCES if name not in MISSING]
    parser.add_argument("--only", nargs="+", choices=at_hand, default=at_hand, help="of the entrances")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what became of the inputs as JSON")
    args = parser.parse_args()
    start, number, outcomes = time.monotonic(), args.seed, Counter[str]()
    while True:
        for name in args.only:
            try:
                campaign(name, number, outcomes)
            except Exception:
                print(f"FAILED: python scripts/fuzz.py --only {name} --minutes 0 --seed {number}", file=sys.stderr)
                raise
        number += 1
        if time.monotonic() >= start + 60 * args.minutes:
            break
    minutes = (time.monotonic() - start) / 60
    print(f"{sum(outcomes.values()):,} inputs in {minutes:.0f} min, seeds {args.seed} to {number - 1}, no failure")
    for what, times in sorted(outcomes.items()):
        print(f"  {what:60s} {times:,}")
    for name in MISSING:
        print(f"  {name}: not tried, as what it needs is not at hand (--help)")
    if args.out:
        said = {
            "minutes": round(minutes, 1),
            "seeds": [args.seed, number - 1],
            "outcomes": dict(sorted(outcomes.items())),
        }
        args.out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
