"""A made label space, and what stands above a field of it."""

from collections.abc import Mapping
from typing import Any

Parents = Mapping[str, str | None]
"""Field → the field above it."""


def label_space(parents: Parents, **more: Any) -> dict[str, Any]:
    """The content of a label space file with these fields."""
    return {
        "label_space_version": "1.0",
        "name": "fuzz",
        "description": "Made up.",
        "source": "tests",
        "fields": [{"name": name} | ({"parent": above} if above else {}) for name, above in parents.items()],
        **more,
    }


def above(name: str, parents: Parents) -> list[str]:
    """All fields above one, the nearest first."""
    parent = parents[name]
    return [parent, *above(parent, parents)] if parent else []
