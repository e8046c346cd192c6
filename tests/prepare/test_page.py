"""What docs/data.md shows works as shown."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from vivid_monai.data.columns import manifest_schema
from vivid_monai.prepare import table
from vivid_monai.prepare.build import prepare
from vivid_monai.ums.record import Record

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
LIDC = Path(__file__).parents[2] / "docs" / "lidc.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def column_names(heading: str) -> set[str]:
    """The code words of the first column of the first table with a heading."""
    rows = PAGE.split(f"\n{heading}\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


@pytest.fixture
def manifest(tmp_path):
    """The page's own table, read through the page's own mapping."""
    (labels,), (mapping,) = blocks("csv"), blocks("json")
    (tmp_path / "labels.csv").write_text(labels)
    (tmp_path / "map.json").write_text(mapping)
    source = table.read(tmp_path / "labels.csv", mapping=tmp_path / "map.json", image_root=tmp_path)
    return prepare(source, check="none", val=0.0, test=0.0).manifest


def test_the_example_means_what_the_page_says(manifest):
    assert manifest.states(["Edema", "Pleural Effusion", "Fracture", "Pneumonia"]).tolist() == [
        [1, 0, -1, -1],
        [1, -1, -1, -1],
        [0, 2, 0, -1],
    ]
    assert manifest.table["view"].to_pylist() == ["PA", "lateral", "AP"]
    assert manifest.table["sex"].to_pylist() == ["F", "F", "M"]
    assert set(manifest.patients()) == {"P-17", "P-52"}


def test_the_python_examples_run(manifest, tmp_path):
    names = {"path": manifest.save(tmp_path / "m.parquet")}
    for code in blocks("python"):
        exec(compile(code, "docs/data.md", "exec"), names)
    assert names["states"].shape == (3, 2)
    assert isinstance(names["record"], Record)


def test_every_key_and_column_is_told():
    schema = resources.files("vivid_monai.prepare") / "mapping-1.0.schema.json"
    keys = json.loads(schema.read_text(encoding="utf-8"))["properties"]
    assert column_names("| key | what it is |") == set(keys)
    told = column_names("| column | |") - {"finding.NAME"}
    assert told == set(manifest_schema([]).names)


def test_every_reason_is_told():
    told = column_names("| reason | the row |")
    code = "".join(path.read_text(encoding="utf-8") for path in Path(table.__file__).parent.rglob("*.py"))
    assert all(f'"{reason}"' in code or f'f"{reason.removesuffix("…")}' in code for reason in told)
    told |= set(re.findall(r"`([a-z-]+)`[,| ]", LIDC.read_text(encoding="utf-8")))
    used = set(re.findall(r"\"((?:bad|no|not|missing|unreadable|ragged|patient|conflicting)-[a-z-]+)\"", code))
    assert used - {"no-finding"} <= told
