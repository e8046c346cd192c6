"""Where a number comes from: the command, the merged config, the versions and the time."""

import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

PACKAGES = ("vivid-monai", "monai", "torch", "transformers", "pytorch-ignite", "numpy", "scikit-learn", "scipy")


def provenance() -> dict[str, Any]:
    """The command, the versions and the time (UTC, to the second), as they are stored with results."""
    return {
        "command": command_line(),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def resolved_config() -> dict[str, Any]:
    """The merged config of the bundle workflow that is running this code, overrides included; ``{}`` outside of one.

    A config cannot name itself in MONAI's language, so the workflow is found among the callers.
    """
    frame = sys._getframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return dict(workflow.parser.get())
        frame = frame.f_back  # type: ignore[assignment]
    return {}


def command_line() -> str:
    """The command that started this process, as one can type it again."""
    program = Path(sys.argv[0])
    start = (
        ["python", "-m", "monai.bundle"] if program.parts[-3:] == ("monai", "bundle", "__main__.py") else [program.name]
    )
    return " ".join(map(_quoted, [*start, *sys.argv[1:]]))


def _quoted(word: str) -> str:
    """A word for the shell: in double quotes where it holds single ones, as lists of configs do."""
    return f'"{word}"' if "'" in word and not set('"$`\\!') & set(word) else shlex.quote(word)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {"python": ".".join(map(str, sys.version_info[:3])), **{name: version(name) for name in PACKAGES}}
