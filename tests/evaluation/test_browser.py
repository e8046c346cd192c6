"""The pages in a real browser: everything drawn, nothing fetched, nothing over the edge, the numbers right."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluation.browser import DESKTOP, PHONE, TABLES, Page, chromium
from tests.evaluation.made_run import make_run
from tests.evaluation.test_training import trained
from vivid_monai.evaluation.report import write_comparison, write_report
from vivid_monai.evaluation.results import CLASS_METRICS, Results, Row

pytestmark = pytest.mark.browser
ORGANS = ["bladder", "femur-left", "heart", "kidney-left", "liver", "lung-left", "pancreas", "spleen", "aorta"]
LONG = "A finding whose name somebody made very long, as in enlarged cardiomediastinum with widened hilum"
UNBROKEN = "Enlarged_Cardiomediastinum_" * 4
ODD = ["<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "a\"b'c $x^2$ &amp; --> ]]>", LONG, UNBROKEN]
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    trained(root / "findings")
    make_run(root / "findings", seeds=(0, 1))
    make_run(root / "classes", fields=ORGANS, exclusive=True, n=400, maps=False)
    make_run(root / "odd", fields=ODD, rare=[], encoders={"</style><b>x": 1.0}, examples=0, warnings=["warn"] * 40)
    for name, seed in (("first", 1), ("second", 2)):
        make_run(root / name, encoders={"encoder": 1.0}, seed=seed)
    return {name: write_report(root / name) for name in ("findings", "classes", "odd")} | {
        "comparison": write_comparison([root / "first", root / "second"], root / "comparison.html")
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@SIZES
@pytest.mark.parametrize("name", ["findings", "classes", "odd", "comparison"])
def test_page_is_whole(page: Page, pages: dict[str, Path], name: str, size: tuple[int, int]) -> None:
    page.resize(size)
    page.open(pages[name])
    assert page.requests() == [pages[name].as_uri()]
    assert page.problems() == []
    page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.problems() == []
    assert page.run("return document.querySelectorAll('svg.panel').length") == 2 * len(
        page.run("return [...document.querySelectorAll('.panels')][0].children")
    )
    ids = page.run("return [...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids)) > 5
    assert page.run(
        "return [...document.querySelectorAll('svg:not([aria-hidden]), img')].every(one => one.ariaLabel ?? one.alt)"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["findings", "classes", "odd", "comparison"])
def test_text_can_be_read_in_both_schemes(page: Page, pages: dict[str, Path], name: str, scheme: str) -> None:
    page.resize(DESKTOP)
    page.scheme(scheme)
    page.open(pages[name])
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
    lowest, where = page.contrast()
    assert lowest >= 4.5, where


@pytest.mark.parametrize("name", ["findings", "classes", "odd"])
def test_tables_hold_the_numbers_of_the_results(page: Page, pages: dict[str, Path], name: str) -> None:
    page.open(pages[name])
    results = Results.load(pages[name].parent / "results.json")
    tables = {table["metric"]: table for table in page.run(TABLES)}
    assert all(table["scopes"] and table["caption"] for table in tables.values())
    for metric in ("auroc", "ap", "f1", "brier", "ece"):
        table = tables[metric]
        assert table["columns"] == ["field", "present", "absent", *results.encoders]
        shown = {row[0]: row[2:] for row in table["rows"]}
        assert list(shown) == ["(macro)", *results.fields]
        for field in results.fields:
            counts = results.test["n_present"][field], results.test["n_absent"][field]
            assert shown[field][:2] == [f"{n:,}" for n in counts]
            assert shown[field][2:] == [cell(results.get(metric, field, name)) for name in results.encoders]
        assert shown["(macro)"][2:] == [cell(results.get(metric, "(macro)", name)) for name in results.encoders]
    if results.kind == "classes":
        for row in tables["classes"]["rows"]:
            assert row[2:] == [cell(results.get(metric, "(all)", row[0])) for metric in CLASS_METRICS]
    if results.differences:
        shown_differences = [row[3] for row in tables["differences"]["rows"]]
        assert shown_differences == [signed_cell(one) for one in results.differences]


def test_nothing_of_a_name_is_run(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["odd"])
    assert page.run("return document.scripts.length") == 0
    names = page.run(
        "return [...document.querySelectorAll('table[data-metric=auroc] tbody th')].map(o => o.textContent)"
    )
    assert names[1:] == ODD
    assert page.run("return document.querySelectorAll('main img, main script').length") == 0


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("document.querySelector('svg.forest').replaceChildren()", "not drawn"),
        ("document.querySelectorAll('svg.panel defs').forEach(one => one.remove())", "not drawn"),
        ("document.querySelector('img').src = 'data:image/jpeg;base64,AAAA'", "not drawn"),
        (
            "document.querySelector('svg.panel').style.cssText = 'width: 2000px; max-width: none'",
            "wider than its place",
        ),
        (
            "document.querySelector('p').style.width = '3000px'; document.querySelector('p').style.maxWidth = 'none'",
            "over",
        ),
        ("console.error('broken')", "console"),
    ],
)
def test_a_broken_page_is_noticed(page: Page, pages: dict[str, Path], script: str, told: str) -> None:
    page.resize(PHONE)
    page.open(pages["findings"])
    assert page.problems() == []
    page.driver.execute_async_script(f"{script}; setTimeout(arguments[0], 100)")
    assert any(told in problem for problem in page.problems())


def test_the_page_may_ask_for_nothing(page: Page, pages: dict[str, Path], tmp_path: Path) -> None:
    """Even markup that got in by mistake could load nothing and run nothing."""
    broken = tmp_path / "broken.html"
    markup = "<img src='other.png'><script>document.title = 'run'</script><h1>"
    broken.write_text(pages["findings"].read_text().replace("<h1>", markup, 1))
    page.open(broken)
    assert page.driver.title != "run"
    assert any("Content Security Policy" in problem for problem in page.problems())


def cell(e: Row) -> str:
    """The text of a cell, written here once more."""
    if e.value is None:
        return "–"
    return f"{e.value:.3f}" if e.low is None else f"{e.value:.3f} {e.low:.3f}–{e.high:.3f}"


def signed_cell(e: Row) -> str:
    return f"{e.value:+.3f} {e.low:+.3f} to {e.high:+.3f}"
