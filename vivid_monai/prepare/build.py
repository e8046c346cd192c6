"""From what an adapter read to a validated, split and described manifest."""

import hashlib
import platform
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai import __version__
from vivid_monai.data.columns import open_label_space, state_columns, stored_label_space
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SPLITS, SplitError, SplitRule, assert_disjoint
from vivid_monai.errors import VividError
from vivid_monai.prepare.card import Card, count_states, describe, to_markdown
from vivid_monai.prepare.image_files import Check, check_images, drop_duplicates, drop_each
from vivid_monai.prepare.source import KEY, ROW, TABLE, Contradictions, Rows, Source, write_skip_list
from vivid_monai.prepare.validate import contradictions, invalid_rows
from vivid_monai.storage.files import whole_file
from vivid_monai.ums.label_space import LabelSpace

_CHECKED = {
    "none": "NOT CHECKED. Nobody looked whether the files are there.",
    "files": "every file is there and not empty; none was opened.",
    "images": "every file was read in full.",
}


@dataclass(frozen=True)
class Prepared:
    """A manifest, its card, and the rows that are not in it (columns table, row, key, reason, detail)."""

    manifest: Manifest
    card: Card
    skipped: pa.Table

    def write(self, folder: Path) -> Path:
        """Write skipped.csv, card.json, card.md and, when they are there, manifest.parquet; returns its path."""
        write_skip_list(self.skipped, folder / "skipped.csv")
        files = {"card.json": self.card.to_json(), "card.md": to_markdown(self.card)}
        for name, content in files.items():
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
        val: fraction of the patients without an official split that go to val; default: the source's.
        test: the same for test.
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
    rule = _rule(source, salt=salt, val=val, test=test)

    drop_duplicates(rows)
    check_images(rows, source.image_root, check=check, workers=workers)
    drop_each(rows, {row: (f"invalid-{v.code}", v.message) for row, v in invalid_rows(rows.table, space).items()})
    policy = on_contradiction or source.contradictions
    found = _contradictions(rows, space, policy)
    skipped = rows.all_skipped()
    reasons = Counter(skipped["reason"].to_pylist())
    if not rows.table.num_rows:
        told = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common()) or "the table holds none"
        first = f"; the first: row {skipped['row'][0]}, {skipped['detail'][0]}" if skipped.num_rows else ""
        raise VividError(f"{source.dataset}: no rows are left of {rows.n_read:,} ({told}){first}")

    _split(rows, rule, source.official)
    how = {"official": sorted(source.official), **(rule.to_dict() if rule else {"salt": None, "val": 0.0, "test": 0.0})}
    files = [_told(file, rows, skipped) for file in source.files]
    manifest = Manifest(
        rows.table, label_space=source.label_space, image_root=source.image_root, splits=how, sources=files
    )
    card = Card(
        dataset=source.dataset,
        label_policy=source.label_policy,
        rows={"read": rows.n_read, "kept": len(manifest), "skipped": skipped.num_rows},
        skipped=dict(reasons.most_common()),
        contradictions=found,
        states_read=read,
        split_rule=how,
        image_check=_CHECKED[check],
        sources=files,
        notes=rows.notes,
        command=command,
        versions={"vivid-monai": __version__, "pyarrow": pa.__version__, "python": platform.python_version()},
        **describe(manifest),
    )
    manifest.card = card.to_dict()
    return Prepared(manifest, card, skipped)


def _rule(source: Source, *, salt: str, val: float | None, test: float | None) -> SplitRule | None:
    """The rule for rows without an official split; ``None`` where every row has one."""
    for name, fraction in (("val", val), ("test", test)):
        if fraction and name in source.official:
            raise SplitError(f"{source.dataset} brings its own {name} split: leave --{name} out")
    if not source.rows.table["split"].null_count and source.rows.table.num_rows:
        return None
    rule = SplitRule(salt=salt, val=source.val, test=source.test)
    return replace(rule, val=rule.val if val is None else val, test=rule.test if test is None else test)


def _contradictions(rows: Rows, space: LabelSpace, policy: Contradictions) -> dict[str, Any]:
    columns = state_columns(space.fields)
    states = (
        np.stack([rows.table[name].to_numpy() for name in columns], axis=1) if rows.table.num_rows else np.empty((0, 0))
    )
    found = contradictions(states, space)
    by_code: Counter[str] = Counter()
    reason: dict[int, tuple[str, str]] = {}
    for members, violations in found:
        by_code.update({code: len(members) for code in sorted({v.code for v in violations})})
        reason |= dict.fromkeys(members.tolist(), (f"contradiction-{violations[0].code}", violations[0].message))
    if reason and policy == "error":
        row = min(reason)
        where = f"{rows.table[TABLE][row]}, row {rows.table[ROW][row]} ({rows.table[KEY][row]})"
        raise VividError(f"{len(reason):,} rows contradict themselves; the first: {where}: {reason[row][1]}")
    if policy == "skip":
        drop_each(rows, reason)
    return {"policy": policy, "rows": len(reason), "by_code": dict(by_code)}


def _split(rows: Rows, rule: SplitRule | None, official: frozenset[str]) -> None:
    """Fill in the open splits and look whether all that should be there are, and are disjoint."""
    table = rows.table
    given = table["split"].cast(pa.string())
    expected = set(official)
    if rule is not None:
        drawn = rule.assign(table["patient_id"]).cast(pa.string())
        known = table.filter(pc.is_valid(given))
        assert_disjoint(known["patient_id"], known["split"], where="official splits")
        given = pc.coalesce(given, pa.chunked_array([drawn]))
        expected |= {"train"} | ({"val"} if rule.val else set()) | ({"test"} if rule.test else set())
    counts = Counter(given.to_pylist())
    for split in SPLITS:
        if split in expected and not counts[split]:
            raise SplitError(
                f"split {split!r} is empty: {dict(counts)} of {table.num_rows:,} rows kept. Give a larger fraction or "
                "another salt, or see why its rows were skipped"
            )
    assert_disjoint(table["patient_id"], given, where="splits")
    rows.table = table.set_column(table.column_names.index("split"), "split", given)


def _told(file: Path, rows: Rows, skipped: pa.Table) -> dict[str, Any]:
    """Name, hash and number of rows of a source file (none for a list)."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    n = pc.sum(pc.equal(rows.table[TABLE], file.name)).as_py() + (
        pc.sum(pc.equal(skipped["table"], file.name)).as_py() or 0
    )
    return {"file": file.name, "sha256": digest} | ({"rows": n} if n else {})
