"""Label spaces as a manifest stores them: by name where the package has them, else with the whole of their file."""

import json
from pathlib import Path
from typing import Any

from vivid_monai.ums.label_space import LabelSpace, available_label_spaces, load_label_space, parse_label_space

LabelSpaceSource = str | Path | dict[str, Any]
"""A name in the package, the path of a JSON file, or that file's content."""


def stored_label_space(source: LabelSpaceSource) -> str | dict[str, Any]:
    """What to store: the name of a label space of the package, or the content of one of your own (a manifest must not
    depend on a file that may change or vanish).

    Raises:
        VividError: no label space of that name, or not a valid one.
    """
    if isinstance(source, dict):
        open_label_space(source)
        return source
    if isinstance(source, str) and source in available_label_spaces():
        return source
    load_label_space(source)
    return json.loads(Path(source).read_text(encoding="utf-8"))


def open_label_space(stored: str | dict[str, Any]) -> LabelSpace:
    """The label space of what `stored_label_space` returned."""
    if isinstance(stored, str):
        return load_label_space(stored)
    return parse_label_space(json.dumps(stored), where=f"label space {stored.get('name', '?')!r}")
