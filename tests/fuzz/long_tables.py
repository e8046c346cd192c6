"""Tables with a row for each box, finding or reader, and the states and boxes that must come out of each policy."""

import csv
import io
import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.damage import one_line
from tests.fuzz.label_space import above, label_space
from vivid_monai.data.splits import SplitError
from vivid_monai.errors import VividError
from vivid_monai.prepare import table
from vivid_monai.prepare.build import prepare

PARENTS = {"Opacity": None, "Nodule": "Opacity", "Mass": "Opacity", "Air": None, "Rib": None}
SPACE = label_space(PARENTS)
NONE = "No finding"
_RANK = [None, "absent", "uncertain", "present"]
"""Of several states of one reader the last of these counts (docs/data.md)."""

Row = dict[str, Any]
States = dict[str, str | None]


def draw(choose: random.Random) -> tuple[list[Row], dict[str, Any]]:
    """Rows with image, patient, reader, findings and a box, and the mapping that says how to merge them."""
    readers = choose.choice([[""], ["R1"], ["R1", "R2", "R3"]])
    rows: list[Row] = []
    for i in range(choose.choice([30, 60])):
        for reader in choose.sample(readers, choose.randint(1, len(readers))):
            for _ in range(choose.choice([1, 1, 2, 3])):
                listed = choose.sample(sorted(PARENTS), choose.choice([0, 1, 1, 1, 2]))
                x, y = choose.randrange(50), choose.randrange(50)
                box = [x, y, x + choose.randint(1, 40), y + choose.randint(1, 40)] if listed else [""] * 4
                if choose.random() < 0.2:
                    box = [""] * 4
                sides = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
                rows.append({"image": f"i{i}.png", "patient": f"p{i // 2}", "reader": reader, "view": "PA", **sides})
                rows[-1]["listed"] = listed
    if choose.random() < 0.3:  # an image whose rows do not agree on something else than findings
        choose.choice(rows)[choose.choice(["patient", "view"])] = choose.choice(["p999", "AP"])
        for row in rows:
            row["view"] = row["view"] if row["view"] in ("PA", "AP") else "PA"
    choose.shuffle(rows)
    entry: dict[str, Any] = {"column": "listed", "unlisted": choose.choice(["absent", None]), "none": [NONE]}
    entry["delimiter"] = choose.choice(["|", ", "])
    if choose.random() < 0.5:
        entry["looked_for"] = choose.sample(sorted(PARENTS), choose.randint(1, len(PARENTS)))
    mapping = {
        "mapping_version": "1.0",
        "dataset": "fuzz",
        "source": "human",
        "image": "image",
        "patient": "patient",
        "view": "view",
        "reader": "reader",
        "label_space": SPACE,
        "label_list": entry,
        "rows": choose.choice(["any", "majority", "each"]),
        "box": {"x_min": "x0", "y_min": "y0", "x_max": "x1", "y_max": "y1"},
    }
    if readers == [""]:
        mapping["rows"] = choose.choice(["any", "majority"])
        del mapping["reader"]
    return rows, mapping


def states_of_rows(rows: list[Row], entry: dict[str, Any]) -> list[States]:
    """Listed is present, and with it what is above it and looked for; unlisted is what the mapping says."""
    everything = {name for row in rows for name in row["listed"]}
    looked = set(entry.get("looked_for", everything))
    known = looked | everything
    made = []
    for row in rows:
        states: States = {name: entry["unlisted"] if name in known else None for name in PARENTS}
        states |= dict.fromkeys(row["listed"], "present")
        made.append(states)
    sought = {name for name in PARENTS if name in looked or any(states[name] is not None for states in made)}
    for row, states in zip(rows, made, strict=True):
        states |= dict.fromkeys(
            (up for name in row["listed"] for up in above(name, PARENTS) if up in sought), "present"
        )
    return made


def merged(rows: list[Row], states: list[States], how: str) -> States:
    """The states of an image, or of a reader about it."""
    readers: dict[Any, States] = {}
    for place, (row, own) in enumerate(zip(rows, states, strict=True)):
        voter = row["reader"] or (place if how == "majority" else "")
        before = readers.setdefault(voter, dict.fromkeys(PARENTS))
        readers[voter] = {name: max(before[name], own[name], key=_RANK.index) for name in PARENTS}
    if how != "majority":
        return {name: max((one[name] for one in readers.values()), key=_RANK.index) for name in PARENTS}
    voted: States = {}
    for name in PARENTS:
        said = [one[name] for one in readers.values() if one[name] is not None]
        most = [word for word in ("present", "absent") if 2 * said.count(word) > len(said)]
        voted[name] = (most or ["uncertain"])[0] if said else None
    return voted


def expected(rows: list[Row], mapping: dict[str, Any]) -> dict[tuple[str, str | None], tuple[States, Counter[Any]]]:
    """Image and, for "each", reader → states, and the boxes of each finding."""
    states, how = states_of_rows(rows, mapping["label_list"]), mapping["rows"]
    groups: dict[tuple[str, str | None], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row["image"], row["reader"] if how == "each" else None), []).append(place)
    found = {}
    for key, places in groups.items():
        group = [rows[place] for place in places]
        if len({(row["patient"], row["view"]) for row in group}) > 1:
            continue
        result = merged(group, [states[place] for place in places], how)
        boxes: Counter[Any] = Counter()
        for row in group:
            if row["x0"] == "":
                continue
            implied = {up for name in row["listed"] for up in above(name, PARENTS)}
            size = (row["x0"], row["y0"], row["x1"] - row["x0"], row["y1"] - row["y0"])
            kept = [n for n in row["listed"] if n not in implied and result[n] in ("present", "uncertain")]
            boxes.update((name, *map(float, size)) for name in kept)
        found[key] = result, boxes
    return found


def write(rows: list[Row], delimiter: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"listed": delimiter.join(row["listed"]) or NONE} for row in rows)
    return out.getvalue()


def check(choose: random.Random) -> str:
    """Prepare a long table by its policy and compare states and boxes; without a policy it is refused."""
    rows, mapping = draw(choose)
    must = expected(rows, mapping)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "t.csv").write_text(write(rows, mapping["label_list"]["delimiter"]), encoding="utf-8")
        if silent := choose.random() < 0.15:
            del mapping["rows"]
        (folder / "map.json").write_text(json.dumps(mapping), encoding="utf-8")
        try:
            source = table.read(folder / "t.csv", mapping=folder / "map.json", image_root=folder)
            made = prepare(source, check="none", on_contradiction="keep")
        except SplitError:
            return "refused: an empty split, or a patient on two sides"
        except VividError as error:
            one_line(error, beside=name, secrets=("p999",))
            if not silent or "how to merge" not in str(error):
                raise
            return "refused: nobody said how to merge"
    if silent:
        assert _alike(rows), "rows that differ became a data set, and nobody said how"
        return "prepared: rows that say the same"
    words = {0: "absent", 1: "present", 2: "uncertain", -1: None}
    columns = made.manifest.table.to_pydict()
    found = {}
    for i, image in enumerate(columns["image"]):
        states = {field: words[columns[f"finding.{field}"][i]] for field in PARENTS}
        boxes = Counter((b["field"], b["x"], b["y"], b["width"], b["height"]) for b in columns["boxes"][i] or ())
        found[image, columns["reader"][i] if mapping["rows"] == "each" else None] = states, boxes
    differ = [key for key in {*found, *must} if found.get(key) != must.get(key)]
    assert not differ, [(key, found.get(key), must.get(key)) for key in differ]
    return f"prepared: {mapping['rows']}"


def _alike(rows: list[Row]) -> bool:
    images: dict[str, set[str]] = {}
    for row in rows:
        images.setdefault(row["image"], set()).add(json.dumps(row, sort_keys=True))
    return sum(len(one) > 1 for one in images.values()) <= 0.05 * len(images)
