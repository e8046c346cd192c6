"""Matplotlib figures as inline SVG that follows the page: its font, its colours in light and dark, one name space."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Colours that stand for variables of the page's style sheet: what is drawn in them changes with the colour scheme.
INK, MUTED, GRID, PAPER = "#010001", "#010002", "#010003", "#010004"
N_SERIES = 8
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1, 1.5)))
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
_NAMES |= {f"#0200{i:02x}": f"s{i}" for i in range(N_SERIES)}

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it is selected, searched and read aloud
    "svg.hashsalt": "vivid",
    "text.parse_math": False,  # a "$" in a label is a dollar
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


def series_colour(index: int) -> str:
    """The colour of an encoder; after N_SERIES they begin again, told apart by their markers and names."""
    return f"#0200{index % N_SERIES:02x}"


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many CSS pixels, in the page's style, that belongs to no window."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        yield figure


def to_svg(figure: Figure, name: str, title: str, *, classes: Sequence[str] = ()) -> Markup:
    """The figure as an SVG element for an HTML page.

    Args:
        figure: drawn within :func:`drawing`.
        name: unique on the page, letters and digits; the ids within begin with it.
        title: what the figure shows, for those who do not see it; "" where the text beside it says all.
        classes: of the element.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(written.getvalue())
    # A style sheet within would hold for the whole page; style.css has its one rule.
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", " ".join(value for one in root.iter() for value in one.attrib.values())))
    for element in root.iter():
        _follow_the_page(element, name, used)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    spoken = {"role": "img", "aria-label": title} if title else {"aria-hidden": "true"}
    root.attrib |= {**spoken, "class": " ".join(classes)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _follow_the_page(element: ElementTree.Element, name: str, used: set[str]) -> None:
    attributes = element.attrib
    if (key := attributes.pop("id", None)) in used:
        attributes["id"] = f"{name}-{key}"
    for attribute, value in attributes.items():
        if attribute in ("style", "fill", "stroke"):
            value = re.sub("#0[12]00[0-9a-f]{2}", lambda found: f"var(--{_NAMES[found[0]]})", value)
        if attribute == "d" or attribute == "points":
            value = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
        elif attribute in ("x", "y"):
            value = f"{float(value):.1f}"
        value = re.sub(r"url\(#", f"url(#{name}-", value)
        if attribute == f"{{{_XLINK}}}href":
            value = f"#{name}-{value.removeprefix('#')}"
        attributes[attribute] = value
    # Colours of presentation attributes cannot be variables; a style can.
    painted = [f"{key}: {attributes.pop(key)}" for key in ("fill", "stroke") if "var(" in attributes.get(key, "")]
    if painted:
        attributes["style"] = "; ".join([*painted, *([attributes["style"]] if attributes.get("style") else [])])
