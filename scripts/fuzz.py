"""Try what nobody thought of: inputs drawn at random, each with an answer that is worked out without the package.

    python scripts/fuzz.py --minutes 120 --seed 1      # every entrance in turn
    python scripts/fuzz.py --only tables --seed 7      # one of them

Ends at the first failure, which is shrunk to a small input and printed with the seed that finds it again.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fuzz import tables

ENTRANCES: dict[str, tuple[Any, Any]] = {"tables": (tables.tables(), tables.check)}
"""Name → what draws an input, and what checks it and says in a word what became of it."""
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
    parser.add_argument("--only", nargs="+", choices=ENTRANCES, default=list(ENTRANCES), help="of the entrances")
    args = parser.parse_args()
    end, number, outcomes = time.monotonic() + 60 * args.minutes, args.seed, Counter[str]()
    while True:
        for name in args.only:
            try:
                campaign(name, number, outcomes)
            except Exception:
                print(f"FAILED: python scripts/fuzz.py --only {name} --minutes 0 --seed {number}", file=sys.stderr)
                raise
        number += 1
        if time.monotonic() >= end:
            break
    print(f"{sum(outcomes.values()):,} inputs, seeds {args.seed} to {number - 1}, no failure")
    for what, times in sorted(outcomes.items()):
        print(f"  {what:40s} {times:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
