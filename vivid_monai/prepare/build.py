"""Validate, split and describe the rows of a source: make the manifest and its data card."""

import hashlib
import json
import platform
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from vivid_monai import __version__
from vivid_monai.data.columns import open_label_space, stored_label_space
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SPLITS, SplitError, SplitRule, assert_disjoint
from vivid_monai.errors import VividError
from vivid_monai.prepare.card import Card, Counts, count_states, describe, over_splits, to_markdown
from vivid_monai.prepare.image_files import Check, check_images, drop_duplicates
from vivid_monai.prepare.source import KEY, ROW, TABLE, Contradictions, Rows, Source, write_skip_list
from vivid_monai.prepare.validate import contradictions, invalid_rows, to_arrow
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.states import STATES

_CHECKED = {
    "none": "NOT CHECKED. Nobody looked whether the files are there.",
    "files": "every file is there and not empty; none was opened.",
    "images": "every file was read in full.",
}


_ROWS, _STATES = 0.05, 0.2
"""Of the rows, and of one state of a field: what may be lost without anybody having said so."""


_NO_LOSS = ("duplicate", "few-readers")
"""Reasons of rows that repeat another, or that an option leaves out."""


class Prepared(NamedTuple):
    """A manifest, its card, and the rows that are not in it (columns table, row, key, reason, detail)."""

    manifest: Manifest
    card: Card
    skipped: pd.DataFrame

    def describe(self, folder: Path) -> None:
        """Write skipped.csv, card.json and card.md, and no manifest."""
        write_skip_list(self.skipped, folder / "skipped.csv")
        as_json = json.dumps(self.card, ensure_ascii=False, indent=2) + "\n"
        for name, content in (("card.json", as_json), ("card.md", to_markdown(self.card))):
            with whole_file(folder / name) as part:
                part.write_text(content, encoding="utf-8")

    def write(self, folder: Path) -> Path:
        """Write what describes it and, when that is there, manifest.parquet; returns its path."""
        self.describe(folder)
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
        val, test: fractions of the patients without an official split; of the official train patients, where every
            row has a split. Default: the source's; none for a split that the source brings.
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
    rule = _rule(source, salt, val, test)
    table = rows.table
    repeated = drop_duplicates(rows)
    read, once = (count_states(one, space.fields) for one in (table, table.drop(index=repeated)))
    check_images(rows, source.image_root, check=check, workers=workers)
    rows.drop_each({row: (f"invalid-{v.code}", v.message) for row, v in invalid_rows(rows.table, space).items()})
    found = _contradictions(rows, space, on_contradiction or source.contradictions)
    if rows.table.empty:
        skipped = rows.all_skipped()
        reasons = dict(Counter(skipped["reason"]).most_common())
        counted = ", ".join(f"{reason} {n:,}" for reason, n in reasons.items()) or "the table holds none"
        first = f"; the first: row {skipped['row'][0]}, {skipped['detail'][0]}" if len(skipped) else ""
        raise VividError(f"{source.dataset}: no rows are left of {rows.n_read:,} ({counted}){first}")

    official = _split(rows, rule, source)
    skipped = rows.all_skipped()
    reasons = dict(Counter(skipped["reason"]).most_common())
    how = {"official": sorted(official), **(rule.to_dict() if rule else {"salt": None, "val": 0.0, "test": 0.0})}
    files = [_source_file(file, rows, skipped) for file in source.files]
    manifest = Manifest(
        to_arrow(rows.table), label_space=source.label_space, image_root=source.image_root, splits=how, sources=files
    )
    described = describe(manifest)
    manifest.card = {
        "dataset": source.dataset,
        "label_space": space.name,
        "label_policy": source.label_policy,
        "rows": {"read": rows.n_read, "kept": len(manifest), "skipped": len(skipped)},
        "skipped": reasons,
        "contradictions": found,
        "states_read": read,
        "losses": _losses(rows.n_read, skipped, once, over_splits(described["states"])),
        **described,
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


def _rule(source: Source, salt: str, val: float | None, test: float | None) -> SplitRule | None:
    """How open splits are drawn; None where every row has one and nobody asked for more."""
    asked = {"val": val, "test": test}
    for name, fraction in asked.items():
        if fraction and name in source.official:
            raise SplitError(f"{source.dataset} brings its own {name} split: leave --{name} out")
    table = source.rows.table
    complete = not table.empty and not table["split"].isna().any()
    if complete and not any(asked.values()):
        return None

    def share(name: str, own: float) -> float:
        if (fraction := asked[name]) is not None:
            return fraction
        return 0.0 if complete or name in source.official else own

    return SplitRule(salt=salt, val=share("val", source.val), test=share("test", source.test))


def _split(rows: Rows, rule: SplitRule | None, source: Source) -> frozenset[str]:
    """Draw the open splits, and check that all expected ones are there and disjoint; returns which are official.

    An open row of a patient whose other images are officially in val or test is left out ("official-patient"): there
    it would change the official set, and elsewhere the patient would be on two sides. In train it joins them.
    """
    given, official = rows.table["split"].astype(object), source.official
    known = given.notna()
    sides = given if source.open_is is None else given.fillna(source.open_is)
    looked_at = sides.notna()
    where = "the data set's own splits (mend them there)"
    seen = rows.table[looked_at]
    assert_disjoint(pa.array(seen["patient_id"]), pa.array(sides[looked_at]), where=where, row=partial(_row_of, seen))
    if rule is not None and known.all():  # of the official train patients, as nothing else is open
        rows.notes.append("Drawn from the official train patients.")
        given, official = given.mask(given == "train"), official - {"train"}
    elif rule is not None and known.any():
        of_patient = dict(zip(rows.table["patient_id"][known], given[known], strict=True))
        theirs = rows.table["patient_id"].astype(object).map(of_patient)
        held_out = given.isna() & theirs.isin(["val", "test"])
        rows.drop(held_out, "official-patient", "has no split, and the patient's other images are officially held out")
        given = given.fillna(theirs)[~held_out]
    patients = pa.array(rows.table["patient_id"])
    expected = set(official)
    if rule is not None:
        given = given.fillna(pd.Series(rule.assign(patients).to_pandas().astype(object).to_numpy(), given.index))
        expected |= {"train"} | ({"val"} if rule.val else set()) | ({"test"} if rule.test else set())
    counts = given.value_counts().to_dict()
    for split in SPLITS:
        if split in expected and split not in counts:
            raise SplitError(
                f"split {split!r} is empty: {counts} of {len(given):,} rows kept. Give a larger fraction or "
                "another salt, or see why its rows were skipped"
            )
    assert_disjoint(patients, pa.array(given), where="splits", row=partial(_row_of, rows.table))
    rows.table = rows.table.assign(split=given.astype("category"))
    return official


def _row_of(table: pd.DataFrame, place: int) -> str:
    return f"{table[TABLE].iloc[place]}, row {table[ROW].iloc[place]}"


def _losses(n_read: int, skipped: pd.DataFrame, read: Counts, kept: Counts) -> dict[str, Any]:
    """What is not in the manifest, repeated rows apart: rows, states of each field, and what is over the limits."""
    lost = int((skipped["row"].notna() & ~skipped["reason"].isin(_NO_LOSS)).sum())
    over = [f"{lost:,} of {n_read:,} rows"] if lost > _ROWS * n_read else []
    for field, states in read.items():
        for word in STATES:
            before, after = states[word], kept[field][word]
            if before - after > _STATES * before:
                over.append(f"{before - after:,} of {before:,} {word} of {field}")
    return {"rows": lost, "states_read_once": read, "over": over}


def _source_file(file: Path, rows: Rows, skipped: pd.DataFrame) -> dict[str, Any]:
    """Name, hash and number of rows of a source file (none for a list)."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    n = int((rows.table[TABLE] == file.name).sum() + (skipped["table"] == file.name).sum())
    return {"file": file.name, "sha256": digest} | ({"rows": n} if n else {})
