"""The modules and the decision rules that a bundle ships."""

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


def load_rules(bundle: Path) -> Any:
    """The ``scripts.postprocessing.DecisionRules`` of a bundle: from probabilities to states and records.

    Raises:
        ValueError: not the folder of a bundle of `vivid bundle`.
    """
    try:
        with scripts_of(bundle):
            try:
                rules = import_module("scripts.postprocessing").DecisionRules
            except ModuleNotFoundError:  # a bundle of vivid-monai 0.1
                rules = import_module("scripts.answers").Answers
            return rules.of_bundle(bundle / "configs" / "metadata.json")
    except (OSError, ImportError, KeyError, ValueError) as error:
        raise ValueError(f"{bundle}: is not a bundle of `vivid bundle`: {error!r}") from error
