"""``vivid verify``: check files of UMS records and print everything that is wrong with them."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import load_label_space
from vivid_monai.ums.schema import Violation, parse_json
from vivid_monai.ums.verify import verify

LINE_SUFFIXES = (".jsonl", ".ndjson")

Entry = tuple[int, str, Any]
"""Line in the file from 1, prefix for pointers, and the record's JSON, or the VividError that stands for it."""


def register(subparsers: Any, *, summary: str = "") -> None:
    """Add the subcommand to the parser of ``vivid``."""
    parser = subparsers.add_parser(
        "verify",
        help=summary,
        description='Check UMS records and print every violation as: file:line "pointer" code message.',
        epilog="Exit status: 0 all valid, 1 violations, 2 something could not be read. Codes: docs/ums.md.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a record or an array of records (.json), or one record a line (.jsonl, .ndjson)",
    )
    parser.add_argument(
        "--label-space",
        metavar="NAME|FILE",
        help="check the findings against this label space (default: the one that each record names, if any)",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Check the files and return the exit status."""
    space = load_label_space(args.label_space) if args.label_space else None
    tally: Counter[str] = Counter()
    entries = ((path, *entry) for path in args.files for entry in _entries(path))
    for path, line, prefix, data in tqdm(entries, unit=" records", delay=2, leave=False, disable=None):
        if isinstance(data, VividError):
            tally["unreadable"] += 1
            _print(path, line, Violation(prefix, "unreadable", str(data)))
            continue
        violations = verify(data, space)
        tally["records"] += 1
        tally["invalid"] += bool(violations)
        tally["violations"] += len(violations)
        tally["unnamed"] += space is None and not (isinstance(data, dict) and "label_space" in data)
        for found in violations:
            _print(path, line, Violation(prefix + found.pointer, found.code, found.message))
    _say(_summary(tally))
    return 2 if tally["unreadable"] else 1 if tally["violations"] else 0


def _summary(tally: Counter[str]) -> str:
    text = f"{tally['records']} records, {tally['invalid']} of them with {tally['violations']} violations"
    if tally["unreadable"]:
        text += f"; {tally['unreadable']} unreadable"
    if tally["unnamed"]:
        text += (
            f"; {tally['unnamed']} name no label space, so fields and hierarchy were not checked (see --label-space)"
        )
    return text


def _entries(path: Path) -> Iterator[Entry]:
    """Yield the records of a file; what cannot be read comes as a VividError in the record's place."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() in LINE_SUFFIXES:
                for line, raw in enumerate(file, 1):
                    if raw.strip():
                        yield line, "", _parse(raw)
                return
            whole = _parse(file.read())
    except OSError as error:
        yield 1, "", VividError(f"cannot be read: {error.strerror}")
        return
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


def _print(path: Path, line: int, found: Violation) -> None:
    _say(f"{path}:{line} {json.dumps(found.pointer)} {found.code} {found.message}")


def _say(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
