"""Validate, split and describe the rows of a source: make the manifest and its data card."""

import hashlib
import json
import platform
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from vivid_monai import __version__
from vivid_monai.data.columns import open_label_space, stored_label_space
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SPLITS, SplitError, SplitRule, assert_disjoint
from vivid_monai.errors import VividError
from vivid_monai.prepare.card import Card, count_states, describe, to_markdown
from vivid_monai.prepare.image_files import Check, check_images, drop_duplicates
from vivid_monai.prepare.source import KEY, ROW, TABLE, Contradictions, Rows, Source, write_skip_list
from vivid_monai.prepare.validate import contradictions, invalid_rows, to_arrow
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.label_space import LabelSpace

_CHECKED = {
    "none": "NOT CHECKED. Nobody looked whether the files are there.",
    "files": "every file is there and not empty; none was opened.",
    "images": "every file was read in full.",
}


class Prepared(NamedTuple):
    """A manifest, its card, and the rows that are not in it (columns table, row, key, reason, detail)."""

    manifest: Manifest
    card: Card
    skipped: pd.DataFrame

    def write(self, folder: Path) -> Path:
        """Write skipped.csv, card.json, card.md and, when they are there, manifest.parquet; returns its path."""
        write_skip_list(self.skipped, folder / "skipped.csv")
        as_json = json.dumps(self.card, ensure_ascii=False, indent=2) + "\n"
        for name, content in (("card.json", as_json), ("card.md", to_markdown(self.card))):
            with whole_file(folder / name) as part:
                part.write_text(content, encoding="utf-8")
        return self.manifest.save(folder / "manifest.parquet")


def prepare(
    source: Source,
    *,
    salt: str = "vivid-med",
    val: float | None = None,
    test: float | None = None,
    on_contradiction: Contradictions | None = None,
    check: Check = "files",
    workers: int = 2,
    command: str = "",
) -> Prepared:
    """Check the rows, split them by patient, and describe what came of it.

    Args:
        salt: of the patients' hash.
        val, test: fractions of the patients without an official split; default: the source's.
        on_contradiction: "keep" rows whose states contradict each other, "skip" them or raise an "error".
        check: how far to look at the image files (`check_images`).
        workers: processes that read images.
        command: what the user typed, for the card.

    Raises:
        VividError: no rows are left; a contradictory row, where that is an error.
        SplitError: a patient on two sides, an empty split, a fraction for a split that is official.
    """
    rows = source.rows
    space = open_label_space(stored_label_space(source.label_space))
    read = count_states(rows.table, space.fields)
    for name, fraction in (("val", val), ("test", test)):
        if fraction and name in source.official:
            raise SplitError(f"{source.dataset} brings its own {name} split: leave --{name} out")
    rule = None  # every row has an official split
    if rows.table["split"].isna().any() or rows.table.empty:
        rule = SplitRule(salt=salt, val=source.val, test=source.test)
        rule = replace(rule, val=rule.val if val is None else val, test=rule.test if test is None else test)

    drop_duplicates(rows)
    check_images(rows, source.image_root, check=check, workers=workers)
    rows.drop_each({row: (f"invalid-{v.code}", v.message) for row, v in invalid_rows(rows.table, space).items()})
    found = _contradictions(rows, space, on_contradiction or source.contradictions)
    skipped = rows.all_skipped()
    reasons = dict(Counter(skipped["reason"]).most_common())
    if rows.table.empty:
        counted = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items()) or "the table holds none"
        first = f"; the first: row {skipped['row'][0]}, {skipped['detail'][0]}" if len(skipped) else ""
        raise VividError(f"{source.dataset}: no rows are left of {rows.n_read:,} ({counted}){first}")

    _split(rows, rule, source.official)
    how = {"official": sorted(source.official), **(rule.to_dict() if rule else {"salt": None, "val": 0.0, "test": 0.0})}
    files = [_source_file(file, rows, skipped) for file in source.files]
    manifest = Manifest(
        to_arrow(rows.table), label_space=source.label_space, image_root=source.image_root, splits=how, sources=files
    )
    manifest.card = {
        "dataset": source.dataset,
        "label_space": space.name,
        "label_policy": source.label_policy,
        "rows": {"read": rows.n_read, "kept": len(manifest), "skipped": len(skipped)},
        "skipped": reasons,
        "contradictions": found,
        "states_read": read,
        **describe(manifest),
        "image_check": _CHECKED[check],
        "sources": files,
        "notes": rows.notes,
        "command": command,
        "versions": {"vivid-monai": __version__, "pyarrow": pa.__version__, "python": platform.python_version()},
    }
    return Prepared(manifest, manifest.card, skipped)


def _contradictions(rows: Rows, space: LabelSpace, policy: Contradictions) -> dict[str, Any]:
    """Keep, drop or refuse contradictory rows; returns the card's entry about them."""
    found = contradictions(rows.table, space)
    by_code: Counter[str] = Counter()
    for violations in found:
        by_code.update({violation.code for violation in violations})
    if len(found) and policy == "error":
        row = found.index[0]
        table, number, key = rows.table.loc[row, [TABLE, ROW, KEY]]
        where = f"{table}, row {number} ({key})"
        raise VividError(f"{len(found):,} rows contradict themselves; the first: {where}: {found[row][0].message}")
    if policy == "skip":
        rows.drop_each({row: (f"contradiction-{v[0].code}", v[0].message) for row, v in found.items()})
    return {"policy": policy, "rows": len(found), "by_code": dict(sorted(by_code.items()))}


def _split(rows: Rows, rule: SplitRule | None, official: frozenset[str]) -> None:
    """Draw the open splits, and check that all expected ones are there and disjoint."""
    patients, given = pa.array(rows.table["patient_id"]), rows.table["split"].astype(object)
    expected = set(official)
    if rule is not None:
        known = given.notna()
        assert_disjoint(pa.array(rows.table["patient_id"][known]), pa.array(given[known]), where="official splits")
        given = given.fillna(pd.Series(rule.assign(patients).to_pandas().astype(object).to_numpy(), given.index))
        expected |= {"train"} | ({"val"} if rule.val else set()) | ({"test"} if rule.test else set())
    counts = given.value_counts().to_dict()
    for split in SPLITS:
        if split in expected and split not in counts:
            raise SplitError(
                f"split {split!r} is empty: {counts} of {len(given):,} rows kept. Give a larger fraction or "
                "another salt, or see why its rows were skipped"
            )
    assert_disjoint(patients, pa.array(given), where="splits")
    rows.table = rows.table.assign(split=given.astype("category"))


def _source_file(file: Path, rows: Rows, skipped: pd.DataFrame) -> dict[str, Any]:
    """Name, hash and number of rows of a source file (none for a list)."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    n = int((rows.table[TABLE] == file.name).sum() + (skipped["table"] == file.name).sum())
    return {"file": file.name, "sha256": digest} | ({"rows": n} if n else {})
