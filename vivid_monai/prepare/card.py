"""The data card of a manifest: counts by split, skipped rows, provenance; as JSON and as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from vivid_monai.data.columns import FINDING, state_columns
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import ENOUGH, SPLITS
from vivid_monai.ums.states import NULL, STATES

Card = dict[str, Any]
"""Plain numbers and words. Rows are images.

* dataset, label_space, label_policy, image_check, command: words.
* rows: "read", "kept", "skipped" → rows; skipped: reason → rows, each of them listed in skipped.csv.
* contradictions: "policy", "rows", and "by_code": rows by the verifier's code ("hierarchy", "no-finding", "exclusive").
* states_read: field → state → rows that could be parsed, before any was left out; states: split → the same, kept.
* losses: "rows" left out that repeat no other, "states_read_once" as states_read without repeated rows, and "over":
  what of that is more than may be lost without a word.
* few: fields with too few present or absent images in val or test for an answer or a number, each with its counts.
* splits: split → "images", "patients"; split_rule: salt, fractions, and which splits are official.
* views, sexes: word → split → rows; ages: "known" (rows), "min", "median", "max" (years).
* sources: files with "sha256" and "rows"; notes: sentences; versions: package → version.
"""
_WITHOUT = {
    "train": "nothing can be trained on it",
    "val": "nothing can be trained or evaluated on it; --val draws it from the train patients",
    "test": "nothing can be tested on it; --test draws it from the train patients",
}
"""What a manifest cannot do without a split."""
_UNANSWERED = f"under {ENOUGH}, so a bundle does not answer it where that is val, nor a test count it where it is test"
Counts = dict[str, dict[str, int]]


def count_states(table: pd.DataFrame, fields: Sequence[str]) -> Counts:
    """Field → state ("null" included) → rows, from the state columns."""
    counts = {}
    for field in fields:
        found = table[FINDING + field].value_counts()
        counts[field] = {word: int(found.get(code, 0)) for code, word in enumerate(("null", *STATES), start=NULL)}
    return counts


def over_splits(states: Mapping[str, Counts]) -> Counts:
    """Field → state → rows of all splits together, of a card's "states"."""
    sides = list(states.values())
    return {
        field: {word: sum(side[field][word] for side in sides) for word in words} for field, words in sides[0].items()
    }


def too_few(states: Mapping[str, Counts]) -> list[str]:
    """Fields with labels, but under :data:`~vivid_monai.data.splits.ENOUGH` present or absent ones in val or test.

    Args:
        states: a card's.

    Returns:
        Of each its name and what is few: "Fracture (val 3 present, test 7 present)".
    """
    told = []
    for field, counts in over_splits(states).items():
        sides = [(split, word) for split in ("val", "test") if split in states for word in ("present", "absent")]
        few = [f"{s} {states[s][field][word]} {word}" for s, word in sides if states[s][field][word] < ENOUGH]
        if few and counts["present"] + counts["absent"]:
            told.append(f"{field} ({', '.join(few)})")
    return told


def count_words(table: pd.DataFrame, column: str) -> Counts:
    """Word ("unknown" for null) → split → rows."""
    words = table[column].astype(object).fillna("unknown")
    counts = pd.crosstab(words, table["split"]).reindex(columns=[s for s in SPLITS if (table["split"] == s).any()])
    return counts.to_dict(orient="index")


def describe(manifest: Manifest) -> Card:
    """The parts of a card that the manifest itself tells."""
    columns = ["split", "patient_id", "view", "sex", "age", *state_columns(manifest.fields)]
    table = manifest.table.select(columns).to_pandas()
    ages = table["age"].dropna()
    known = {"min": float(ages.min()), "median": float(ages.median()), "max": float(ages.max())} if len(ages) else {}
    parts = {split: part for split in SPLITS if len(part := table[table["split"] == split])}
    states = {split: count_states(part, manifest.fields) for split, part in parts.items()}
    return {
        "states": states,
        "few": too_few(states),
        "splits": {s: {"images": len(part), "patients": part["patient_id"].nunique()} for s, part in parts.items()},
        "split_rule": manifest.splits,
        "views": count_words(table, "view"),
        "sexes": count_words(table, "sex"),
        "ages": {"known": len(ages), **known},
    }


def to_markdown(card: Card) -> str:
    """The card as a page that is also readable in a terminal."""
    rows, sides = card["rows"], list(card["splits"])
    parts = [
        f"# Data card: {card['dataset']}",
        f"{rows['read']:,} rows read, {rows['kept']:,} kept, {rows['skipped']:,} skipped.",
        f"Label space: {card['label_space']}.",
        f"Label policy: {card['label_policy']}",
        _splits_text(card["split_rule"]),
        _table(("split", "images", "patients"), [(s, n["images"], n["patients"]) for s, n in card["splits"].items()]),
    ]
    if card["skipped"]:
        listed = _table(("reason", "rows"), card["skipped"].items())
        parts += ["## Skipped rows (each is listed in skipped.csv)", listed]
    parts += ["## Contradictory rows", _contradictions_text(card["contradictions"])]
    parts += ["## States as read", _states_table(card["states_read"])]
    for split, counts in card["states"].items():
        parts += [f"## States kept, {split}", _states_table(counts)]
    for title in ("view", "sex"):
        counted = card["views" if title == "view" else "sexes"]
        body = [(word, *(by_split.get(side, 0) for side in sides)) for word, by_split in counted.items()]
        parts += [f"## {title.capitalize()}", _table((title, *sides), body)]
    parts += ["## Age", _ages_text(card["ages"], rows["kept"])]
    parts += ["## Provenance", f"Images: {card['image_check']}"]
    files = [(file["file"], file.get("rows", ""), file["sha256"]) for file in card["sources"]]
    parts += [_table(("source", "rows", "sha256"), files), *(f"- {note}" for note in card["notes"])]
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    parts += [f"Made with `{card['command']}` ({versions}).", "## Checks", _checks_text(card)]
    return "\n\n".join(parts) + "\n"


def _checks_text(card: Card) -> str:
    """What a person reads first: patients, rows and classes that are not there."""
    lost, read = card["losses"]["rows"], card["rows"]["read"]
    why = ", ".join(f"{reason} {n:,}" for reason, n in card["skipped"].items() if reason != "duplicate")
    told = [
        "Patients on two sides: 0.",
        f"Rows lost: {lost:,} of {read:,} ({lost / max(read, 1):.1%}){f': {why}' if lost else ''}.",
        *(f"No {split} split: {way}." for split, way in _WITHOUT.items() if split not in card["splits"]),
        *(f"LOST: {what}." for what in card["losses"]["over"]),
        *(f"FEW: {what}: {_UNANSWERED}." for what in card.get("few", ())),  # cards of before have none
    ]
    kept, once = over_splits(card["states"]), card["losses"]["states_read_once"]
    balance = [(field, *(f"{kept[field][word]:,} of {once[field][word]:,}" for word in STATES)) for field in once]
    return "\n\n".join(["\n".join(f"- {one}" for one in told), _table(("field, kept of read", *STATES), balance)])


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
    words = (*STATES, "null")
    return _table(("field", *words), [(field, *(n[word] for word in words)) for field, n in counts.items()])


def _table(head: Sequence[str], body: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, also readable as text: words to the left, numbers to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in (head, *body)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[f"{c:{'>' if i else '<'}{w}}" for i, (c, w) in enumerate(zip(r, widths, strict=True))] for r in cells]
    first, *others = (f"| {' | '.join(row)} |" for row in padded)
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([first, rule, *others])
