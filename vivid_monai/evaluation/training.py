"""What the page says of a run that trained: its curves, how long it took, and what it was asked for."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivid_monai.errors import VividError, first_line
from vivid_monai.storage.configs import packaged_configs
from vivid_monai.storage.curves import CURVES, TIMES, panels, read_rows
from vivid_monai.storage.run_config import CONFIG

Lines = Mapping[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Training:
    """
    Attributes:
        panels: title → column → points (step, value), as of :func:`~vivid_monai.storage.curves.panels`.
        steps: of the run.
        seconds: that it took with its validations, None where it was not kept; images_per_s: of its steps alone.
        changed: knob → (value, value of the shipped config), of those that differ.
        others: knob → value; all of them where there is no shipped config to compare with.
    """

    panels: Mapping[str, Lines]
    steps: int
    seconds: float | None
    images_per_s: float | None
    changed: Mapping[str, tuple[Any, Any]]
    others: Mapping[str, Any]


def read_training(folder: Path, *, defaults: Path | None = None) -> Training | None:
    """What the folder of a run says of its training; None where nothing was trained.

    Args:
        defaults: the shipped config; None: train.json of :func:`~vivid_monai.storage.configs.packaged_configs`.

    Raises:
        VividError: one of its files cannot be read.
    """
    if not (folder / CURVES).exists():
        return None
    rows = read_rows(folder / CURVES)
    times = read_rows(folder / TIMES) if (folder / TIMES).exists() else []
    knobs = read_knobs(folder / CONFIG) if (folder / CONFIG).exists() else {}
    defaults = defaults or packaged_configs() / "train.json"
    shipped = read_knobs(defaults) if defaults.exists() else knobs
    changed = {name: (value, shipped.get(name)) for name, value in knobs.items() if value != shipped.get(name)}
    return Training(
        panels=panels([*rows, *times]),
        steps=int(max((row["step"] for row in rows), default=0)),
        seconds=times[-1]["seconds"] if times else None,
        images_per_s=_mean_speed(times),
        changed=changed,
        others={name: value for name, value in knobs.items() if name not in changed},
    )


def _mean_speed(times: list[dict[str, float]]) -> float | None:
    """Images by seconds of all steps; None where no row tells."""
    steps = [row["step"] - before["step"] for before, row in zip([{"step": 0.0}, *times], times, strict=False)]
    spent = [n / row["images_per_s"] for n, row in zip(steps, times, strict=True) if row.get("images_per_s")]
    return sum(steps) / sum(spent) if spent and len(spent) == len(steps) and not math.isnan(sum(spent)) else None


def read_knobs(path: Path) -> dict[str, Any]:
    """The plain values on top of a config: numbers, words and lists of them, in its order; no expression, no object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in config.items() if not name.startswith("_") and _is_plain(value)}
    except (OSError, ValueError, AttributeError) as error:
        raise VividError(f"{path}: cannot be read as the config of a run: {first_line(error)}") from error


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(one) and not isinstance(one, list) for one in value)
    is_expression = isinstance(value, str) and value.startswith(("$", "@", "%"))
    return value is None or (isinstance(value, int | float | str) and not is_expression)
