"""Write docs/results.md from the results that are stored in docs/results, and nothing else.

    python scripts/write_results.py                                          # the page, from what is stored
    python scripts/write_results.py --add nih=runs/compare/nih/evaluation    # store a run's results.json, then the page

What is stored holds aggregates only: no image, no patient, no path of a machine.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import jinja2

from vivid_monai.errors import VividError
from vivid_monai.evaluation.results import Results
from vivid_monai.storage.files import whole_file

ROOT = Path(__file__).parents[1]
STORE = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
METRICS = {"auroc": "AUROC", "ap": "AP", "f1": "F1", "brier": "Brier", "ece": "ECE"}
CLASS_METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--add", nargs="*", default=[], metavar="NAME=RUN", help="store RUN/results.json as NAME first")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write (default: docs/results.md)")
    args = parser.parse_args()
    for name, run in (pair.split("=", 1) for pair in args.add):
        store(name, Path(run))
    write_page(args.page)
    print(f"written: {args.page}")


def store(name: str, run: Path) -> None:
    """Keep a run's results under a name, without what belongs to one machine."""
    content = Results.load(run / "results.json").to_dict()
    content["skipped"] = len(content["skipped"])
    data = content["run"].get("data", {})
    content["run"]["data"] = {key: data[key] for key in ("dataset", "splits", "source") if key in data}
    for encoder in content["encoders"].values():
        for probe in encoder["probes"]:
            probe.pop("tried", None)
    text = json.dumps(rounded(content), indent=1, ensure_ascii=False)
    if found := re.search(r'["\' =](/[\w.-]+/[\w./-]+)', text):
        raise VividError(f"{run}: its results name {found[1]}; run it again with paths inside the repository")
    with whole_file(STORE / f"{name}.json") as part:
        part.write_text(text + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """Numbers to six significant digits: more would be noise in the history of a file."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_page(page: Path) -> None:
    """The page, from every file in the store, in the order of their names."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": cell, "signed": signed}
    template = environment.from_string((Path(__file__).with_suffix(".md.j2")).read_text(encoding="utf-8"))
    stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(STORE.glob("*.json"))}
    if not stored:
        raise VividError(f"{STORE}: nothing is stored; add a run with --add NAME=RUN")
    with whole_file(page) as part:
        part.write_text(
            template.render(stored=stored, metrics=METRICS, class_metrics=CLASS_METRICS).rstrip() + "\n",
            encoding="utf-8",
        )


def cell(estimate: dict[str, Any] | None) -> str:
    """``.712 (.640–.781)``."""
    if estimate is None or estimate["value"] is None:
        return "–"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f}–{estimate['high']:.3f})"


def signed(estimate: dict[str, Any]) -> str:
    """``+.012 (-.003 to +.027)``."""
    return f"{estimate['value']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})"


if __name__ == "__main__":
    main()
