"""What a run was asked for: its config beside its results, and what may change when it goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivid_monai.checks import running_workflow
from vivid_monai.errors import VividError, cut
from vivid_monai.storage.files import whole_file

CONFIG = "config.json"
MAY_CHANGE = frozenset(
    (
        *("_desc_", "bundle_root", "output_dir", "resume", "name", "publish"),
        *("device", "num_workers", "cache", "save_every", "compile"),
        *("val_interval", "val_images", "n_examples", "min_present", "min_absent", "evaluation", "validate"),
    )
)
"""Items of a config, with all below them, that change nothing of what the network learns."""


def running_config() -> dict[str, Any]:
    """The merged config of the bundle workflow that is running, overrides included; empty outside of one."""
    workflow = running_workflow()
    return json.loads(json.dumps(workflow.parser.get(), default=str)) if workflow else {}


def write_config(folder: Path) -> None:
    """Write the config of the running workflow into a run's folder."""
    with whole_file(folder / CONFIG) as part:
        part.write_text(json.dumps(running_config(), indent=2) + "\n", encoding="utf-8")


def resume_config(folder: Path) -> None:
    """Compare the running config with that of the run in `folder`, and store it where only what may change changed.

    Raises:
        VividError: something else changed: every such item by its name.
    """
    now = running_config()
    path = folder / CONFIG
    if not now or not path.exists():
        return
    try:
        was = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VividError(f"{path}: cannot be read, so nobody knows what the run was asked for: {error}") from error
    changed = [one for one in _differences(was, now) if one[0].split("#")[0] not in MAY_CHANGE]
    if changed:
        told = [f"{key} was {cut(repr(before), 40)}, is {cut(repr(after), 40)}" for key, before, after in changed[:3]]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise VividError(
            f"cannot resume: {'; '.join(told)}{more}. Go on with what the run was asked for (--config_file {path}), or "
            "start a new run without --resume"
        )
    write_config(folder)


def _differences(was: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name as MONAI writes it ("train#dataset#cache"), value before and value now of what differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*was, *now]):
            yield from _differences(was.get(name), now.get(name), f"{key}#{name}" if key else name)
    elif was != now:
        yield key, was, now
