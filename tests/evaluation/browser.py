"""A headless Chromium that opens a page from disk and tells what is wrong with it."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DESKTOP, PHONE = (1400, 900), (390, 844)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
FIGURES = """
return [...document.querySelectorAll('svg, img')].map(one => {
  const folded = one.closest('details:not([open])') !== null;
  const outer = one.getBoundingClientRect(), box = one.parentElement.getBoundingClientRect();
  const drawn = one.tagName === 'IMG' ? one.naturalWidth : (b => b.width * b.height)(one.getBBox());
  const parts = [...one.querySelectorAll('use')].map(use => use.getBBox());
  const marks = one.tagName === 'IMG' || (one.querySelector('path') && parts.every(box => box.width + box.height > 0));
  return {name: one.getAttribute('aria-label') ?? one.alt, folded, drawn, marks,
          width: outer.width, wider: outer.right > box.right + 1 || outer.left < box.left - 1};
});
"""
OVERFLOWING = """
const width = document.documentElement.clientWidth;
return [...document.body.querySelectorAll('*')].filter(one => {
  if (one.closest('.scroll') && !one.classList.contains('scroll')) return false;
  return one.getBoundingClientRect().right > width + 1;
}).map(one => one.tagName + '.' + one.getAttribute('class')).concat(
  document.documentElement.scrollWidth > width ? ['the page: ' + document.documentElement.scrollWidth] : []);
"""
COLOURS = """
const words = one => [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
return [...document.body.querySelectorAll('*')].filter(words).map(one => {
  const style = getComputedStyle(one), behind = [];
  for (let back = one; back; back = back.parentElement) behind.push(getComputedStyle(back).backgroundColor);
  return [one.textContent, one.namespaceURI.endsWith('svg') ? style.fill : style.color, behind];
});
"""
TABLES = """
return [...document.querySelectorAll('table[data-metric]')].map(table => ({
  metric: table.dataset.metric,
  columns: [...table.tHead.rows[0].cells].map(cell => cell.textContent),
  rows: [...table.tBodies[0].rows].map(row => [row.dataset.field, ...[...row.cells].map(cell => cell.textContent)]),
  scopes: [...table.querySelectorAll('th')].every(cell => cell.scope), caption: table.caption.textContent}));
"""


class Page:
    """An open page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def resize(self, size: tuple[int, int]) -> None:
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, path: Path) -> None:
        self.driver.get_log("performance")
        self.driver.get(path.as_uri())

    def requests(self) -> list[str]:
        """Every address the page asked for since it was opened, without data inside of the page."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def problems(self) -> list[str]:
        """What is wrong at the present size: messages on the console, figures not drawn or too wide, overflow."""
        found = [f"console: {entry['message']}" for entry in self.driver.get_log("browser")]
        figures = self.run(FIGURES)
        found += [f"not drawn: {f['name']}" for f in figures if not f["folded"] and not (f["drawn"] and f["marks"])]
        found += [f"wider than its place: {f['name']}" for f in figures if f["wider"] or f["width"] > 1400]
        return found + [f"over the edge: {name}" for name in self.run(OVERFLOWING)]

    def contrast(self) -> tuple[float, str]:
        """The lowest contrast of any text with what is behind it (WCAG 2.2, 1.4.3), and which text that is."""
        return min((_contrast(_rgba(ink)[:3], _blend(behind)), text) for text, ink, behind in self.run(COLOURS))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser with a fresh profile; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium: apt-get install -y chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Page(opened)
    finally:
        opened.quit()


def _rgba(colour: str) -> list[float]:
    parts = [float(part) for part in re.findall(r"[\d.]+", colour)]
    return parts if len(parts) == 4 else [*parts, 1.0]


def _blend(behind: list[str]) -> list[float]:
    """What is seen of backgrounds that lie over each other, the uppermost first."""
    seen = [255.0, 255.0, 255.0]
    for *colour, opacity in map(_rgba, reversed(behind)):
        seen = [opacity * over + (1 - opacity) * under for over, under in zip(colour, seen, strict=True)]
    return seen


def _contrast(a: list[float], b: list[float]) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
