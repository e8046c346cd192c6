"""``vivid verify``, ``labels``, ``phantom``, ``report``: check records, show label spaces, write phantoms and pages."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivid_monai.errors import VividError
from vivid_monai.logs import progress
from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space
from vivid_monai.ums.schema import Violation, parse_json
from vivid_monai.ums.verify import verify

COMPARISON = Path("comparison.html")


def add_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.epilog = "Exit status: 0 all valid, 1 violations, 2 something could not be read. Codes: docs/ums.md."
    what = "a record or an array of records (.json), or one record a line (.jsonl, .ndjson)"
    add("files", nargs="+", type=Path, metavar="FILE", help=what)
    what = "check the findings against this label space (default: the one that each record names, if any)"
    add("--label-space", metavar="NAME|FILE", help=what)


def run_verify(args: argparse.Namespace) -> int:
    """Check UMS records and print every violation as: file:line "pointer" code message."""
    space = load_label_space(args.label_space) if args.label_space else None
    n: Counter[str] = Counter()
    entries = ((path, *entry) for path in args.files for entry in _entries(path))
    for path, line, prefix, data in progress(entries, unit=" records", delay=2, leave=False):
        if isinstance(data, VividError):
            n["unreadable"] += 1
            violations = [Violation("", "unreadable", str(data))]
        else:
            violations = verify(data, space)
            n["records"] += 1
            n["invalid"] += bool(violations)
            n["violations"] += len(violations)
            n["unnamed"] += space is None and not (isinstance(data, dict) and "label_space" in data)
        for found in violations:
            _say(f"{path}:{line} {json.dumps(prefix + found.pointer)} {found.code} {found.message}")
    text = f"{n['records']} records, {n['invalid']} of them with {n['violations']} violations"
    text += f"; {n['unreadable']} unreadable" if n["unreadable"] else ""
    unnamed = "name no label space, so fields and hierarchy were not checked (see --label-space)"
    _say(text + (f"; {n['unnamed']} {unnamed}" if n["unnamed"] else ""))
    return 2 if n["unreadable"] else 1 if n["violations"] else 0


def _entries(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Line in the file from 1, prefix for pointers, and JSON of each record, or the VividError that stands for it."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() in (".jsonl", ".ndjson"):
                yield from ((line, "", _parse(raw)) for line, raw in enumerate(file, 1) if raw.strip())
                return
            whole = _parse(file.read())
    except OSError as error:
        whole = VividError(f"cannot be read: {error.strerror}")
    if isinstance(whole, list):
        yield from ((1, f"/{index}", record) for index, record in enumerate(whole))
    else:
        yield 1, "", whole


def _parse(raw: bytes) -> Any:
    try:
        return parse_json(raw.decode("utf-8-sig"), where="record")
    except UnicodeDecodeError as error:
        return VividError(f"not UTF-8 text: {error.reason} at byte {error.start}")
    except VividError as error:
        return error


def _say(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    progress.write(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)


def add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME|FILE", help="a label space to show")


def run_labels(args: argparse.Namespace) -> int:
    """List the label spaces of the package, or show one: its fields in order, other names, parents, sides, and the
    fields of other label spaces that mean the same."""
    if args.name:
        print("\n".join(_show(load_label_space(args.name))))
        return 0
    for space in map(load_label_space, available_label_spaces()):
        print(f"{space.name:<16}  {len(space.fields):>2} fields  {space.description}")
    print("\nShow one with: vivid labels NAME")
    return 0


def _show(space: LabelSpace) -> Iterator[str]:
    yield f"{space.name}: {space.description}"
    yield f"Source: {space.source}"
    yield ""
    yield from _table(space)
    yield ""
    if space.exclusive:
        yield "Exclusive: at most one field is present."
    if space.sided:
        yield "Sided: images must not be mirrored."
    if space.no_finding:
        beside = ", ".join(f for f in space.fields if f in space.no_finding_compatible) or "nothing"
        yield f"Beside {space.no_finding}, present may be: {beside}."
    if space.none_label:
        yield f"Tables write {space.none_label!r} where every field is absent."
    for field, rating in space.ratings.items():
        yield (
            f"{field} is rated {rating.minimum:g} to {rating.maximum:g}: absent up to {rating.absent_at_most:g}, "
            f"present from {rating.present_at_least:g}, uncertain between."
        )
    for other in map(load_label_space, available_label_spaces()):
        if other.name != space.name and (mapping := space.mapping_to(other)):
            pairs = (here if here == there else f"{here} = {there}" for here, there in mapping.items())
            yield f"Shared with {other.name}: {', '.join(pairs)}."


def _table(space: LabelSpace) -> Iterator[str]:
    rows = [("", "field", "parent", "side", "also called")]
    for index, (field, label) in enumerate(zip(space.fields, space.labels, strict=True)):
        names = (name for name in (label, *space.aliases[field]) if name != field)
        side, parent = space.sides.get(field, ""), space.parents.get(field, "")
        rows.append((str(index), field, parent, side, ", ".join(names)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def add_phantom(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--n", type=int, default=4000, metavar="N", help="number of images")
    add("--seed", type=int, default=0, help="which population of patients")
    add("--size", type=int, default=224, metavar="PIXELS", help="side of an image")
    add("--val", type=float, default=0.1, help="fraction of patients to validate")
    add("--test", type=float, default=0.2, help="fraction of patients to test")
    add("--workers", "--num-workers", type=int, metavar="N", help="processes (default: one per core)")


def run_phantom(args: argparse.Namespace) -> int:
    """Write radiograph-like images of chests that never were, with labels (label space chexpert-12), boxes, reports and
    a manifest split by patient. The same settings always give the same folder."""
    from vivid_monai.prepare.phantoms import prepare  # the other commands do not wait for it

    options = {name: getattr(args, name) for name in ("n", "seed", "size", "val", "test", "workers")}
    print(f"{prepare(args.out, **options)}: {args.n} phantoms of {args.size} pixels")
    return 0


def add_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of an evaluation, with results.json in it")
    what = f"the page, ending in .html (default: report.html in RUN; {COMPARISON} for several runs)"
    add("--out", type=Path, metavar="FILE", help=what)


def run_report(args: argparse.Namespace) -> int:
    """With one run: write its page and metrics.csv again from its files. With several: write one page that compares
    them, the first one being the reference, with .csv and .json of the same numbers beside it. Runs on the same test
    images are compared in pairs; others stand side by side, without differences."""
    from vivid_monai.evaluation.report import write_comparison, write_report  # PyTorch takes seconds to import

    several = len(args.runs) > 1
    print(write_comparison(args.runs, args.out or COMPARISON) if several else write_report(args.runs[0], args.out))
    return 0
