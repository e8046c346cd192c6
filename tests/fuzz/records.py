"""UMS records with the violations that must be found, worked out without the package."""

import argparse
import contextlib
import copy
import io
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz.damage import changed, damaged, one_line
from tests.fuzz.label_space import above, label_space
from vivid_monai.commands.records import run_verify
from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import parse_label_space
from vivid_monai.ums.record import Record
from vivid_monai.ums.verify import verify

PARENTS = {"Chest": None, "Lung": "Chest", "Left Lung Spot": "Lung", "Heart": "Chest", "Device": None, "Nothing": None}
BESIDE_NOTHING = {"Device", "Nothing"}
SPACE = label_space(PARENTS, no_finding={"field": "Nothing", "compatible": ["Device"]})
Wrong = list[tuple[str, str]]
"""Pointer and code of each violation."""


def record(choose: random.Random) -> dict[str, Any]:
    """A record without a violation but, perhaps, contradictory states."""
    states = ["present", "absent", "absent", "uncertain", None]
    height, width = choose.choice([(320, 390), (1, 1), (4000, 3000)])
    data: dict[str, Any] = {
        "ums_version": "1.0",
        "id": choose.choice(["a", "é/ü 1.png", "x" * 500]),
        "patient_id": choose.choice(["p", "007"]),
        "label_space": "fuzz",
        "image": {"path": "a.png", "height": height, "width": width},
        "modality": "DX",
        "anatomy": "chest",
        "view": choose.choice(["PA", "AP", "lateral", None]),
        "findings": {name: {"state": choose.choice(states)} for name in PARENTS if choose.random() < 0.8},
        "provenance": {"dataset": "d", "labeller": "l", "labeller_version": "1", "source": "human"},
    }
    for key, values in {"age": [0, 130, 63.5], "sex": ["F", "M", "O"], "report": ["", "Nothing.\n"]}.items():
        if choose.random() < 0.5:
            data[key] = choose.choice(values)
    for finding in data["findings"].values():
        if finding["state"] is None:
            continue
        if choose.random() < 0.3:
            finding["score"] = choose.choice([0, 1, 0.5])
        if choose.random() < 0.3:
            finding["measurements"] = [{"name": "long_axis", "value": choose.choice([1, 2000]), "unit": "mm"}]
        if finding["state"] in ("present", "uncertain") and choose.random() < 0.4:
            finding["boxes"] = [{"x": 0, "y": 0.0, "width": width, "height": height}]
            finding["severity"] = "mild"
    return data


def contradictions(data: dict[str, Any]) -> Wrong:
    """By docs/ums.md: present below absent, and No Finding beside what it does not allow."""
    states = {name: finding["state"] for name, finding in data["findings"].items()}
    present = [name for name, state in states.items() if state == "present"]
    pairs = [(name, up) for name in present for up in above(name, PARENTS) if states.get(up) == "absent"]
    beside = [name for name in present if "Nothing" in present and name not in BESIDE_NOTHING]
    return [(f"/findings/{name}/state", "hierarchy") for name, _ in pairs] + [
        (f"/findings/{name}/state", "no-finding") for name in beside
    ]


def fault(data: dict[str, Any], choose: random.Random) -> Wrong:
    """Put one more mistake into a record; the violations that it makes."""
    findings = data["findings"]
    named = choose.choice(list(findings) or ["Heart"])
    finding = findings.setdefault(named, {"state": "uncertain"})
    place, own = f"/findings/{named}", dict(finding)
    answered = finding["state"] is not None
    kind = choose.randrange(12)
    if kind == 0:
        gone = choose.choice(["id", "image", "view", "provenance", "patient_id"])
        del data[gone]
        return [("", "schema")]
    if kind == 1:
        data["image"]["odd"] = 1
        return [("/image/odd", "schema")]
    if kind == 2:
        findings["Liver"] = {"state": "absent"}
        return [("/findings/Liver", "unknown-field")]
    if kind == 3:
        data["age"] = choose.choice([-1, 131, 1e9])
        return [("/age", "range")]
    if kind == 4:
        data["age"] = float(choose.choice(["nan", "inf", "-inf"]))
        return [("/age", "number")]
    if kind == 5:
        data["image"] |= {"slices": 3, "slice": choose.choice([3, 10])}
        return [("/image/slice", "box-slice")]
    if kind == 6:
        data["label_space"] = "another"
        return [("/label_space", "label-space")]
    if kind == 7 and answered:
        finding["score"] = choose.choice([-0.1, 1.1])
        return [(f"{place}/score", "range")]
    if kind == 8 and answered:
        finding["measurements"] = [{"name": "girth", "value": 3, "unit": "mm"}]
        return [(f"{place}/measurements/0/name", "measurement")]
    if kind == 9 and own["state"] == "absent":
        finding["severity"] = "mild"
        return [(f"{place}/severity", "absent-detail")]
    if kind == 10 and not answered:
        finding["score"] = 0.5
        return [(f"{place}/score", "null-detail")]
    if own["state"] in ("present", "uncertain"):
        size = data["image"]["width"]
        box = {"x": choose.choice([1, size]), "y": 0, "width": size, "height": 1}
        finding["boxes"] = [*finding.get("boxes", ()), box]
        return [(f"{place}/boxes/{len(finding['boxes']) - 1}/width", "box-outside")]
    data["modality"] = "XX"
    return [("/modality", "enum")]


def check(choose: random.Random) -> str:
    """What is wrong is found, and nothing else; damaged records and files are told in one line each."""
    space = parse_label_space(json.dumps(SPACE), where="fuzz")
    data = record(choose)
    must = contradictions(data)
    if choose.random() < 0.5:
        must += fault(data, choose)
    found = [(one.pointer, one.code) for one in verify(copy.deepcopy(data), space)]
    assert sorted(found) == sorted(must), (found, must)
    if not must:
        assert Record.from_json(Record.from_dict(data).to_json()).to_dict() == data
    odd = changed(data, choose)
    for one in verify(odd, space):
        one_line(one.message)
    with contextlib.suppress(VividError):
        assert Record.from_dict(odd).to_dict() == odd | {"ums_version": "1.0"}
    return _as_file(data, must, odd, choose)


def _as_file(data: dict[str, Any], must: Wrong, odd: Any, choose: random.Random) -> str:
    """`vivid verify` of the record in a file, perhaps with a damaged one beside it."""
    with tempfile.TemporaryDirectory() as folder:
        file, space = Path(folder) / choose.choice(["a.json", "a.jsonl"]), Path(folder) / "space.json"
        space.write_text(json.dumps(SPACE), encoding="utf-8")
        content, whole = json.dumps(data).encode(), choose.random() < 0.5
        if not whole and file.suffix == ".jsonl":
            content += b"\n" + damaged(json.dumps(odd).encode(), choose).replace(b"\n", b"")
        elif not whole:
            content = damaged(content, choose)
        file.write_bytes(content)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = run_verify(argparse.Namespace(files=[file], label_space=str(space)))
        text = out.getvalue()
        if not whole:
            assert status in (0, 1, 2), status
            return f"damaged: status {status}"
        assert status == bool(must), text
        for pointer, code in must:
            assert f"{file}:1 {json.dumps(pointer)} {code} " in text, text
        assert len(text.splitlines()) == len(must) + 1, text
        return "wrong: all found" if must else "valid"
