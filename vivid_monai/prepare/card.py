"""The data card: what a manifest holds, what was left out, and where it came from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.data.columns import FINDING
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SPLITS, encode
from vivid_monai.ums.states import NULL, STATES

Counts = dict[str, dict[str, int]]
WORDS = (*STATES, "null")


@dataclass(frozen=True, kw_only=True)
class Card:
    """Plain numbers and words, so that it is JSON as it is. Rows are images.

    Attributes:
        rows: "read", "kept", "skipped".
        skipped: reason → rows; each of them is listed in skipped.csv.
        contradictions: "policy", and rows by the verifier's code ("hierarchy", "no-finding", "exclusive").
        states_read: field → state → rows that could be parsed, before any was left out.
        states: split → field → state → rows.
        splits: split → "images", "patients".
        split_rule: salt, fractions, and which splits are official.
        ages: "known", "min", "median", "max" (years), split → median under "median_by_split".
    """

    dataset: str
    label_space: str
    label_policy: str
    rows: dict[str, int]
    skipped: dict[str, int]
    contradictions: dict[str, Any]
    states_read: Counts
    states: dict[str, Counts]
    splits: Counts
    split_rule: dict[str, Any]
    views: Counts
    sexes: Counts
    ages: dict[str, float]
    image_check: str
    sources: list[dict[str, Any]]
    notes: list[str]
    command: str
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n"


def count_states(table: pa.Table, fields: Sequence[str]) -> Counts:
    """Field → state ("null" included) → rows, from the state columns."""
    counts = {}
    for field in fields:
        numbers = np.bincount(table[FINDING + field].drop_null().to_numpy() - NULL, minlength=len(WORDS)).tolist()
        counts[field] = dict(zip(("null", *STATES), numbers, strict=True))
    return counts


def count_words(table: pa.Table, column: str) -> Counts:
    """Word ("unknown" for null) → split → rows."""
    there = [split for split in SPLITS if split in pc.unique(table["split"]).to_pylist()]
    counts: Counts = {}
    for row in table.group_by([column, "split"]).aggregate([([], "count_all")]).to_pylist():
        by_split = counts.setdefault(row[column] or "unknown", dict.fromkeys(there, 0))
        by_split[row["split"]] = row["count_all"]
    return dict(sorted(counts.items()))


def describe(manifest: Manifest) -> dict[str, Any]:
    """The parts of a card that can be counted from the manifest itself."""
    table = manifest.table
    ages = table["age"].drop_null().to_numpy()
    states, splits = {}, {}
    for split in SPLITS:
        part = table.filter(pc.equal(table["split"], split))
        if part.num_rows:
            codes, _ = encode(part["patient_id"])
            states[split] = count_states(part, manifest.fields)
            splits[split] = {"images": part.num_rows, "patients": len(np.unique(codes))}
    known = {"min": float(ages.min()), "median": float(np.median(ages)), "max": float(ages.max())} if len(ages) else {}
    return {
        "label_space": manifest.label_space.name,
        "states": states,
        "splits": splits,
        "views": count_words(table, "view"),
        "sexes": count_words(table, "sex"),
        "ages": {"known": len(ages), **known},
    }


def to_markdown(card: Card) -> str:
    """The card as a page that is also readable in a terminal."""
    rows = card.rows
    parts = [
        f"# Data card: {card.dataset}",
        f"{rows['read']:,} rows read, {rows['kept']:,} kept, {rows['skipped']:,} skipped.",
        f"Label space: {card.label_space}.",
        f"Label policy: {card.label_policy}",
        _splits_text(card.split_rule),
        _table(("split", "images", "patients"), [(s, n["images"], n["patients"]) for s, n in card.splits.items()]),
    ]
    if card.skipped:
        parts += ["## Skipped rows (each is listed in skipped.csv)", _table(("reason", "rows"), card.skipped.items())]
    parts += ["## Contradictory rows", _contradictions_text(card.contradictions)]
    parts += ["## States as read", _states_table(card.states_read)]
    for split, counts in card.states.items():
        parts += [f"## States kept, {split}", _states_table(counts)]
    for title, counts in (("view", card.views), ("sex", card.sexes)):
        sides = list(card.splits)
        body = [(word, *(by_split.get(side, 0) for side in sides)) for word, by_split in counts.items()]
        parts += [f"## {title.capitalize()}", _table((title, *sides), body)]
    parts += ["## Age", _ages_text(card.ages, rows["kept"])]
    parts += ["## Provenance", f"Images: {card.image_check}"]
    parts += [_table(("source", "rows", "sha256"), [(s["file"], s.get("rows", ""), s["sha256"]) for s in card.sources])]
    parts += [f"- {note}" for note in card.notes]
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    parts += [f"Made with `{card.command}` ({versions})."]
    return "\n\n".join(parts) + "\n"


def _splits_text(rule: Mapping[str, Any]) -> str:
    official = f"Official: {', '.join(rule['official'])}. " if rule["official"] else ""
    if rule["salt"] is None:
        return f"{official}Nothing was drawn. No patient is in two splits."
    shares = f"val {rule['val']:g}, test {rule['test']:g} of the patients without an official split"
    return f"{official}Drawn by patient: salt {rule['salt']!r}, {shares}. No patient is in two splits."


def _contradictions_text(found: Mapping[str, Any]) -> str:
    if not found["rows"]:
        return "None."
    done = {"keep": "kept as they are", "skip": "skipped"}[found["policy"]]
    codes = ", ".join(f"{code} {n:,}" for code, n in found["by_code"].items())
    return f"{found['rows']:,} rows contradict themselves and were {done}: {codes}."


def _ages_text(ages: Mapping[str, float], kept: int) -> str:
    if not ages["known"]:
        return "Unknown."
    spread = f"{ages['min']:g} to {ages['max']:g} years, median {ages['median']:g}"
    return f"{spread}; unknown for {kept - ages['known']:,} of {kept:,} images."


def _states_table(counts: Counts) -> str:
    return _table(("field", *WORDS), [(field, *(n[word] for word in WORDS)) for field, n in counts.items()])


def _table(head: Sequence[str], body: Any) -> str:
    """A Markdown table with aligned columns: words to the left, numbers to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in (head, *body)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(_pad(c, w, i) for i, (c, w) in enumerate(zip(r, widths, strict=True))) + " |" for r in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _pad(text: str, width: int, position: int) -> str:
    return text.ljust(width) if position == 0 else text.rjust(width)
