"""The bundle's own word on how it answers."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from monailabel.utils.others.class_utils import unload_module


def load_answers(bundle: Path) -> Any:
    """The ``scripts.answers.Answers`` of a bundle: from probabilities to states and records.

    Raises:
        ValueError: not the folder of a bundle of `vivid bundle`.
    """
    metadata = bundle / "configs" / "metadata.json"
    sys.path.insert(0, str(bundle))
    unload_module("scripts")
    try:
        return import_module("scripts.answers").Answers.of_bundle(metadata)
    except (OSError, ImportError, KeyError, ValueError) as error:
        raise ValueError(f"{bundle}: is not a bundle of `vivid bundle`: {error!r}") from error
    finally:
        sys.path.remove(str(bundle))
