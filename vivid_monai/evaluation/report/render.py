"""The templates of the pages: everything that goes into them is escaped, unless this package drew it."""

import functools
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vivid_monai import __version__
from vivid_monai.evaluation.report import words
from vivid_monai.evaluation.report.figure import DASHES, MARKERS, drawing, series_colour, to_svg
from vivid_monai.metrics.statistics import BINS
from vivid_monai.storage.files import whole_file

FOLDER = Path(__file__).parent / "templates"


def render(template: str, path: Path, **context: Any) -> None:
    """Write a page, whole or not at all.

    Args:
        template: its file in `templates`.
        path: the page.
        context: what the template names; a name that is missing is an error, not an empty place.
    """
    with whole_file(path) as part:
        part.write_text(_environment().get_template(template).render(**context, key=Keys()), encoding="utf-8")


class Keys:
    """Gives the sign of an encoder in legends and tables: the line and marker that the figures draw."""

    def __init__(self) -> None:
        self._number = count()

    def __call__(self, series: int) -> Markup:
        with drawing(26, 12) as figure:
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set(xlim=(0, 26), ylim=(0, 12))
            axes.axis("off")
            style: dict[str, Any] = {"color": series_colour(series), "linestyle": DASHES[series % len(DASHES)]}
            axes.plot([1, 25], [6, 6], linewidth=1.8, **style)
            axes.plot([13], [6], marker=MARKERS[series % len(MARKERS)], markersize=6, color=series_colour(series))
            return to_svg(figure, f"key{next(self._number)}", "", classes=["key"])


def is_table(value: Mapping[str, Any]) -> bool:
    """Whether every part of a mapping has the same names for one number or word each, so that it is a table."""
    rows = list(value.values())
    return all(isinstance(row, Mapping) and row and row.keys() == rows[0].keys() for row in rows) and not any(
        isinstance(cell, Mapping | list | tuple) for row in rows for cell in row.values()
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "signed": words.signed,
        "count": words.count,
        "interval": words.interval,
        "estimate": words.estimate_words,
        "difference": words.difference_words,
        "tidy": words.tidy,
    }
    environment.globals |= {
        "METRICS": words.METRICS,
        "ALL_METRICS": words.ALL_METRICS,
        "CLASS_METRICS": words.CLASS_METRICS,
        "EXPLAINED": words.EXPLAINED,
        "style": Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        "version": __version__,
        "n_bins": BINS,
        "is_table": is_table,
        "besides": lambda value, name: {key: one for key, one in value.items() if key != name},
    }
    return environment
