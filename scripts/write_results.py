"""Write docs/results.md from the results that are stored in docs/results, and nothing else.

    python scripts/write_results.py                                          # the page, from what is stored
    python scripts/write_results.py --add nih=runs/compare/nih/evaluation    # store a run's results.json, then the page

What is stored holds aggregates only: no image, no patient, no path of a machine.
"""

import argparse
import re
import textwrap
from pathlib import Path
from typing import Any

import jinja2

from vivid_monai.errors import VividError
from vivid_monai.evaluation.format import SHORT, estimate
from vivid_monai.evaluation.results import ALL, CLASS_METRICS, MACRO, Results, Row, dumps
from vivid_monai.storage.files import whole_file

ROOT = Path(__file__).parents[1]
STORE = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
SHOWN = ("auroc", "ap", "brier")  # F1 hangs on prevalence, and the interval of the ECE is not one for the true error


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
    text = dumps(rounded(content))
    if found := re.search(r'["\' =](/[\w.-]+/[\w./-]+)', text):
        raise VividError(f"{run}: its results name {found[1]}; run it again with paths inside the repository")
    with whole_file(STORE / f"{name}.json") as part:
        part.write_text(text, encoding="utf-8")


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
    template = environment.from_string((Path(__file__).with_suffix(".md.j2")).read_text(encoding="utf-8"))
    stored = {path.stem: Results.load(path) for path in sorted(STORE.glob("*.json"))}
    if not stored:
        raise VividError(f"{STORE}: nothing is stored; add a run with --add NAME=RUN")
    sections = {name: section(results) for name, results in stored.items()}
    with whole_file(page) as part:
        part.write_text(template.render(sections=sections).rstrip() + "\n", encoding="utf-8")


def section(results: Results) -> dict[str, Any]:
    """What the page shows of one result: a table with a row per encoder, macro averages only."""
    compared = list(dict.fromkeys(row.metric for row in results.differences))[:1]  # AUROC, or accuracy of classes
    columns = dict.fromkeys(SHOWN, MACRO)
    columns |= dict.fromkeys(CLASS_METRICS, ALL) if results.kind == "classes" else {}
    rows = []
    for name in results.encoders:
        row = [name, *(estimate(results.get(metric, field, name)) for metric, field in columns.items())]
        for metric in compared:
            found = [d for d in results.differences if (d.metric, d.minus) == (metric, name)]
            row.append(signed(found[0]) if found else "")
        rows.append(row)
    head = ["encoder", *(SHORT[metric] for metric in columns)]
    head += [f"{SHORT[metric]}: first − it" for metric in compared]
    return {"text": text(results), "head": head, "rows": rows}


def text(results: Results) -> str:
    """Command, number of images, and the warnings that concern more than the fit of one seed."""
    test, averaged, excluded = results.test, len(results.macro_fields), len(results.excluded)
    sentences = [
        f"`{shortened(results.run['command'])}`: {test['n_images']} test images of {test['n_patients']} patients,"
        f" macro over {averaged} of {averaged + excluded} findings."
    ]
    if results.skipped:
        sentences.append(f"{results.skipped} unreadable images are left out.")
    of_seeds = [warning for warning in results.warnings if ", seed " in warning]
    elsewhere = ("macro averages over", "every encoder: no F1")  # said by the sentence above; not shown
    said = [w for w in results.warnings if w not in of_seeds and not w.startswith(elsewhere)]
    sentences += [f"Warning: {warning}." for warning in said]
    if of_seeds:
        sentences.append(f"{len(of_seeds)} warnings about the fit of single seeds.")
    return textwrap.fill(" ".join(sentences), 128, break_long_words=False, break_on_hyphens=False)


def shortened(command: str) -> str:
    """What one evaluation's command has beside the common one of the page: its overlay and its data."""
    overlay = re.search(r"configs/eval/[\w.-]+", command)
    options = re.findall(r"--(?:source_dir|dataset_dir|manifest|min_\w+) \S+", command)
    return " ".join([overlay[0] if overlay else command, *options])


def signed(row: Row) -> str:
    """``+0.012 (-0.003…+0.027)``, bold where the interval excludes 0; a dash where it is not defined."""
    if row.value is None or not row.has_interval:
        return "–"
    shown = f"{row.value:+.3f} ({row.low:+.3f}…{row.high:+.3f})"
    return shown if row.holds_zero else f"**{shown}**"


if __name__ == "__main__":
    main()
