"""``vivid report``: write the page of a run again, or the page that compares several."""

import argparse
from pathlib import Path
from typing import Any

from vivid_monai.evaluation.report import write_comparison, write_report

COMPARISON = Path("comparison.html")


def register(subparsers: Any, *, summary: str = "") -> None:
    """Add the subcommand to the parser of ``vivid``."""
    parser = subparsers.add_parser(
        "report",
        help=summary,
        description="With one run: write its page and metrics.csv again from its files. With several: write one page "
        "that compares them, the first one being the reference, with .csv and .json of the same numbers beside it. "
        "Runs on the same test images are compared in pairs; others stand side by side, without differences.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of an evaluation, with results.json in it"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"the page, ending in .html (default: report.html in RUN; {COMPARISON} for several runs)",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the page, print where it lies and return the exit status."""
    if len(args.runs) == 1:
        page = write_report(args.runs[0], args.out)
    else:
        page = write_comparison(args.runs, args.out or COMPARISON)
    print(page)
    return 0
