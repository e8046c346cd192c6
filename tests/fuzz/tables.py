"""Label tables as hospitals write them, with the counts that must come out, recomputed without the package."""

import csv
import io
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.damage import one_line
from vivid_monai.data.splits import SplitError
from vivid_monai.errors import VividError
from vivid_monai.prepare import table
from vivid_monai.prepare.build import prepare

WORDS = [
    {"1": "present", "0": "absent", "-1": "uncertain", "": None},
    {"yes": "present", "no": "absent", "?": "uncertain", "": None},
    {"1.0": "present", "0.0": "absent", "nan": None, "": "absent"},
    {"présent": "present", "nié": "absent", "": None},
]
NOTHING = ("", "nan", "NA", "-", "None", " ")
ENCODINGS = ("utf-8", "UTF-8", "utf-8-sig", "latin-1", "cp1252", "utf-16")


@dataclass
class Table:
    """A table, its mapping, and what is in it: rows as the oracle reads them."""

    content: bytes
    mapping: dict[str, Any]
    rows: list[dict[str, str]]
    fields: list[str]
    states: dict[str, str | None]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Tables of up to 60 rows: identifiers, delimiters, encodings, splits, gaps, repeated and ragged rows vary."""
    fields = draw(st.sampled_from([["A"], ["Edema", "Größe"], ["x y", "B", "C", "D"]]))
    states = draw(st.sampled_from(WORDS))
    names = draw(st.sampled_from(["p{:03d}", "{:d}", "{:08d}", "MRN-{:d}/é", "{:d}.5"]))
    n_patients = draw(st.sampled_from([40, 40, 12, 2]))
    cells = st.sampled_from([*states])
    with_split = draw(st.booleans())
    brought = draw(st.sampled_from([["train"], ["test"], ["train", "test"], ["val", "test"], ["train", "val", "test"]]))
    side = {p: draw(st.sampled_from([*brought, ""])) for p in range(n_patients)} if with_split else {}
    rows = []
    for i in range(draw(st.sampled_from([80, 80, 40, 3]))):
        patient = draw(st.integers(0, n_patients - 1))
        row = {"file": f"{i // 7}/img {i}.png", "id": names.format(patient)}
        row |= {field: draw(cells) for field in fields}
        if with_split:
            row["part"] = draw(st.sampled_from([side[patient], side[patient], ""]))
        rows.append(row)
    for _ in range(draw(st.integers(0, 3))):  # repeated rows, some of which say something else
        again = dict(draw(st.sampled_from(rows)))
        if draw(st.booleans()):
            again[draw(st.sampled_from(fields))] = draw(cells)
        rows.append(again)
    if with_split and draw(st.integers(0, 4)) == 0:  # a patient may be on two sides
        draw(st.sampled_from(rows))["part"] = "train"
    for _ in range(draw(st.integers(0, 3))):  # no image or no patient
        row = dict(draw(st.sampled_from(rows)))
        row["file"] = f"gap{len(rows)}.png"
        row[draw(st.sampled_from(["file", "id"]))] = draw(st.sampled_from(NOTHING))
        rows.append(row)
    rows = draw(st.permutations(rows))
    mapping: dict[str, Any] = {
        "mapping_version": "1.0",
        "dataset": "fuzz",
        "source": "human",
        "image": "file",
        "patient": "id",
        "label_columns": {field: field for field in fields},
        "values": states,
    }
    if with_split:
        mapping["split"] = "part"
    return Table(draw(written(rows, mapping)), mapping, rows, fields, states)


@st.composite
def written(draw: st.DrawFn, rows: list[dict[str, str]], mapping: dict[str, Any]) -> bytes:
    """The rows as CSV, in any of the ways programs write it; the mapping says what it must."""
    delimiter = draw(st.sampled_from([",", ";", "\t", "|"]))
    encoding = draw(st.sampled_from(ENCODINGS))
    out = io.StringIO(newline="")
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writeheader()
    padded = draw(st.booleans())
    for row in rows:
        writer.writerow({key: f" {cell} " if padded and cell else cell for key, cell in row.items()})
    mapping |= {"delimiter": delimiter, "encoding": encoding}
    return out.getvalue().encode(encoding)


def expected(given: Table) -> tuple[dict[tuple[str, str], str], Counter[tuple[str, str | None]]] | None:
    """Image and patient → official split ("" for none), and states by field; None: many images contradict themselves.

    By docs/data.md: rows without image or patient go; of equal rows one stays, of images with different rows none;
    a row without a split follows its patient's official train rows, or goes where he is held out.
    """
    official = {w for row in given.rows if (w := row.get("part"))}
    by_image: dict[str, list[dict[str, str]]] = {}
    for row in given.rows:
        if not any(row[key].strip().lower() in {w.strip().lower() for w in NOTHING} for key in ("file", "id")):
            by_image.setdefault(row["file"].strip(), []).append(row)

    def told(row: dict[str, str]) -> tuple[Any, ...]:
        return (row["id"].strip(), row.get("part"), *(given.states[row[f]] for f in given.fields))

    odd = [image for image, rows in by_image.items() if len({told(row) for row in rows}) > 1]
    if len(odd) > 0.05 * len(by_image):
        return None
    kept = {image: rows[0] for image, rows in by_image.items() if image not in odd}
    of_patient = {row["id"].strip(): row["part"] for row in kept.values() if row.get("part")}
    members: dict[tuple[str, str], str] = {}
    counts: Counter[tuple[str, str | None]] = Counter()
    for image, row in kept.items():
        patient, part = row["id"].strip(), row.get("part", "")
        if official and not part:
            part = of_patient.get(patient, "")
            if part in ("val", "test"):
                continue
        members[image, patient] = part
        counts.update((field, given.states[row[field]]) for field in given.fields)
    return members, counts


def check(given: Table) -> str:
    """Prepare a table and compare it with what must come out; returns what became of it, in a word."""
    must = expected(given)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "t.csv").write_bytes(given.content)
        (folder / "map.json").write_text(json.dumps(given.mapping), encoding="utf-8")
        try:
            source = table.read(folder / "t.csv", mapping=folder / "map.json", image_root=folder)
            made = prepare(source, check="none")
        except VividError as error:
            return _refused(error, given, must)
    assert must is not None, "contradicting rows became a data set"
    members, counts = must
    columns = made.manifest.table.to_pydict()
    rows = list(zip(columns["image"], columns["patient_id"], columns["split"], strict=True))
    assert {(image, patient) for image, patient, _ in rows} == members.keys()
    assert all(members[image, patient] in ("", split) for image, patient, split in rows), "an official member moved"
    sides: dict[str, set[str]] = {}
    for _, patient, split in rows:
        sides.setdefault(patient, set()).add(split)
    assert all(len(found) == 1 for found in sides.values()), "a patient is on two sides"
    words = {0: "absent", 1: "present", 2: "uncertain", -1: None}
    found = Counter((f, words[state]) for f in given.fields for state in columns[f"finding.{f}"])
    assert found == counts
    brought = {row.get("part") for row in given.rows} - {"", None}
    drawn = {split for (_, _, split), part in zip(rows, (members[i, p] for i, p, _ in rows), strict=True) if not part}
    assert not drawn & (brought - {"train"}), "a row was drawn into an official split"
    return "prepared"


def _refused(error: VividError, given: Table, must: Any) -> str:
    """Whether a refusal is one line, and one of those that the table deserves."""
    text = str(error)
    one_line(text)
    if must is None:
        assert "how to merge" in text, text
        return "refused: long"
    sides: dict[str, set[str]] = {}
    for row in given.rows:
        if row.get("part"):
            sides.setdefault(row["id"].strip(), set()).add(row["part"])
    reasons = {
        "empty split": isinstance(error, SplitError) and "is empty" in text,
        "patient on two sides": isinstance(error, SplitError) and any(len(found) > 1 for found in sides.values()),
        "no rows": "no rows are left" in text and not must[0],
    }
    assert any(reasons.values()), text
    return "refused: " + next(reason for reason, holds in reasons.items() if holds)
