"""The pages are short, their links lead somewhere, and their examples run."""

import re
from pathlib import Path

import pytest

from tests.evaluation.made_run import make_run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_pages_are_read_in_an_hour():
    written = [page for page in PAGES if page.name not in ("results.md", "evidence.md")]  # scripts' tables
    assert sum(len(page.read_text(encoding="utf-8").split()) for page in written) <= 24_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_is_long(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    inside = [line.startswith("```") for line in lines]
    prose = [line for i, line in enumerate(lines) if sum(inside[: i + 1]) % 2 == 0 and not line.startswith("|")]
    assert not [line for line in prose if len(line) > 140]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_repository_that_a_page_names_exist(page):
    named = re.findall(r"`((?:scripts|tests|vivid_monai)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_scripts_of_commands_exist():
    named = {name for page in PAGES for name in re.findall(r"python (scripts/\w+\.py)", page.read_text("utf-8"))}
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]


def test_a_phantom_is_as_its_page_says():
    (example,) = blocks("docs/phantom.md")
    names: dict = {}
    exec(compile(example, "docs/phantom.md", "exec"), names)
    assert names["phantom"].image.shape == (224, 224)
    assert all(mask.shape == (224, 224) for mask in names["phantom"].masks.values())


def test_numbers_can_be_computed_again_as_the_page_says(tmp_path, monkeypatch):
    results = make_run(tmp_path, encoders={"encoder": 2.0}, fields=("Edema", "Fracture"), rare=(), examples=0)
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("docs/metrics.md")
    names: dict = {}
    exec(compile(example, "docs/metrics.md", "exec"), names)
    told = [results.get("auroc", field, "encoder").value for field in ("Edema", "Fracture")]
    assert names["auroc"].value.ravel().tolist() == pytest.approx(told, abs=1e-12)
