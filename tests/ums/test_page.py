"""What docs/ums.md shows works as shown."""

import json
import re
from pathlib import Path

import pytest

from vivid_monai.ums.label_space import available_label_spaces, load_label_space, parse_label_space

PAGE = (Path(__file__).parents[2] / "docs" / "ums.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_examples_run(code):
    exec(compile(code, "docs/ums.md", "exec"), {})


def test_the_label_space_of_ones_own_is_valid():
    (text,) = blocks("json")
    space = parse_label_space(text)
    assert space.sides == {"Effusion left": "left"}
    mapped = {"Normal": "No Finding", "Opacity": "Lung Opacity", "Pneumonia": "Pneumonia"}
    assert space.mapping_to(load_label_space("chexpert-14")) == mapped
    assert json.loads(text)["name"] == space.name


def test_all_label_spaces_are_listed_with_their_size():
    listed = re.findall(r"^\| `([a-z0-9-]+)` \| (\d+) \|", PAGE, flags=re.MULTILINE)
    assert {name: int(n) for name, n in listed} == {
        n: len(load_label_space(n).fields) for n in available_label_spaces()
    }
