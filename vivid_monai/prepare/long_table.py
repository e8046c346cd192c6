"""Tables with several rows about one image: one for each box, finding or reader."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from vivid_monai.data.columns import FINDING
from vivid_monai.errors import VividError
from vivid_monai.prepare.source import KEY, ROW, TABLE, Rows, differing
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.states import ABSENT, NULL, PRESENT, UNCERTAIN

Merge = Literal["any", "majority", "each"]
_OWN = (TABLE, ROW, KEY, "id", "boxes", "reader")
_ORDER = np.array([NULL, ABSENT, UNCERTAIN, PRESENT], np.int8)
"""Of several states of a reader, the last of these counts; below, states are their places here, their ranks."""
_ABSENT, _UNCERTAIN, _PRESENT = 1, 2, 3
_MANY = 0.05
"""Where more of the images than this share have rows that differ, the table is long, and not one with slips."""


def merge_rows(rows: Rows, how: Merge, space: LabelSpace) -> None:
    """Make one row of those about one image, or for "each" of those of a reader about it.

    Within a reader a finding is present where any of his rows says so, else uncertain, else absent. "any" does the
    same over readers, and a finding of one outweighs another's "no finding"; "majority" has the state of more than half
    of the readers who answer, and otherwise uncertain (without a column ``reader``, each row is one's). All boxes of
    present and uncertain findings stay. Rows that differ in something else (patient, split, view …) are listed as
    "conflicting-duplicate".
    """
    table = rows.table
    image = list(rows.about)
    if how == "each":
        rows.about = (*image, "reader")
    key = list(rows.about)
    states = [name for name in table if name.startswith(FINDING)]
    facts = [name for name in table if name not in (*_OWN, *key) and name not in states]
    group = table.groupby(key, sort=False, dropna=False).ngroup()
    differ = differing(table, facts, group)
    bad = differ.any(axis=1)
    told = differ[bad].apply(lambda row: "rows of this image differ in " + ", ".join(row.index[row]), axis=1)
    rows.drop(bad, "conflicting-duplicate", told if bad.any() else "")
    table, group = rows.table, group[~bad]
    if table.empty:
        return
    voter = table.groupby([*image, "reader"], sort=False, dropna=False).ngroup()
    if how == "majority" and table["reader"].isna().all():
        voter = pd.Series(np.arange(len(table)), table.index)
    ranks = pd.DataFrame(np.argsort(_ORDER)[table[states].to_numpy() + 1])
    first = ~group.duplicated().to_numpy()
    if how == "majority":
        merged = _vote(ranks.groupby(voter.to_numpy()).max(), group[~voter.duplicated().to_numpy()])
    else:
        merged = ranks.groupby(group.to_numpy(), sort=False).max().to_numpy(copy=True)
    if how == "any" and space.no_finding:
        beside = {space.no_finding, *space.no_finding_compatible}
        found = (merged[:, [state.removeprefix(FINDING) not in beside for state in states]] == _PRESENT).any(axis=1)
        merged[found, states.index(FINDING + space.no_finding)] = _ABSENT
    one = table[first].copy()
    one[states] = _ORDER[merged]
    if "boxes" in table:
        kept = dict(zip(states, (merged >= _UNCERTAIN).T, strict=True))
        found = _boxes_of(table, group, kept)
        lost = int(table["boxes"].map(len, na_action="ignore").sum()) - sum(map(len, found))
        one["boxes"] = pd.Series([boxes or None for boxes in found], one.index, dtype=object)
        if lost:
            rows.notes.append(f"{lost:,} boxes of findings that the majority calls absent are left out.")
    if how == "each":
        one["id"] = one["id"].astype(str) + "#" + one["reader"].astype(str)
    else:
        one["reader"] = None
    words = {"any": "what any row says", "majority": "the majority of the readers", "each": "each reader's own"}
    rows.notes.append(f"{len(table):,} rows about {int(first.sum()):,} images or readings, merged by {words[how]}.")
    rows.table = one


def refuse_long_table(rows: Rows, mapping: Path) -> None:
    """Raise a VividError where many images have rows that say different things: nobody said how to merge them."""
    table = rows.table
    content = [name for name in table if name not in (TABLE, ROW, KEY, "id", *rows.about)]
    image = table.groupby(list(rows.about), sort=False, dropna=False).ngroup()
    if not (several := image.duplicated(keep=False)).any():
        return
    part, of = table[several], image[several]
    differ = differing(part, content, of).any(axis=1)
    n, images = of[differ].nunique(), image.nunique()
    if n > _MANY * images:
        some = ", ".join(str(row) for row in part[ROW][differ & (of == of[differ].iloc[0])][:3])
        raise VividError(
            f"{table[TABLE].iloc[0]}: {n:,} of {images:,} images have several rows that differ (the first: {some}), as "
            f"if for boxes, findings or readers. Say in {mapping.name} how to merge: "
            '"rows": "any", "majority" or "each"'
        )


def _vote(by_reader: pd.DataFrame, group: pd.Series) -> np.ndarray:
    """Ranks (images, fields) of the readers' majority. ``group``: the image of each reader, in order."""
    ranks, images = by_reader.to_numpy(), pd.factorize(group)[0]
    n = images.max() + 1

    def count(which: np.ndarray) -> np.ndarray:
        total = np.zeros((n, ranks.shape[1]), int)
        np.add.at(total, images, which)
        return total

    answered, present, absent = (count(which) for which in (ranks > 0, ranks == _PRESENT, ranks == _ABSENT))
    majority = np.where(2 * present > answered, _PRESENT, np.where(2 * absent > answered, _ABSENT, _UNCERTAIN))
    return np.where(answered == 0, 0, majority)


def _boxes_of(table: pd.DataFrame, group: pd.Series, kept: dict[str, np.ndarray]) -> list[list[dict[str, Any]]]:
    """All boxes of each image, in the order of the images' first rows, of the fields that are kept there."""
    order = {image: at for at, image in enumerate(group.drop_duplicates())}
    found: list[list[dict[str, Any]]] = [[] for _ in order]
    for image, boxes in zip(group, table["boxes"], strict=True):
        at = order[image]
        found[at] += [box for box in boxes or () if kept[FINDING + box["field"]][at]]
    return found
