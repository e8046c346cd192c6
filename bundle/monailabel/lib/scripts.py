"""The bundle's own modules, and its own word on how it answers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from monailabel.utils.others.class_utils import unload_module


@contextmanager
def scripts_of(bundle: Path) -> Iterator[None]:
    """In the block, ``scripts`` is the module of this bundle."""
    sys.path.insert(0, str(bundle))
    unload_module("scripts")
    try:
        yield
    finally:
        sys.path.remove(str(bundle))


def load_answers(bundle: Path) -> Any:
    """The ``scripts.answers.Answers`` of a bundle: from probabilities to states and records.

    Raises:
        ValueError: not the folder of a bundle of `vivid bundle`.
    """
    try:
        with scripts_of(bundle):
            return import_module("scripts.answers").Answers.of_bundle(bundle / "configs" / "metadata.json")
    except (OSError, ImportError, KeyError, ValueError) as error:
        raise ValueError(f"{bundle}: is not a bundle of `vivid bundle`: {error!r}") from error
