"""What has been answered so far, a line for each image, so that an interrupted run goes on where it was."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vivid_monai.deploy.inputs import Input
from vivid_monai.errors import VividError
from vivid_monai.storage.files import whole_file

ANSWERED, NOT_ASSESSED, UNREADABLE = "answered", "not assessed", "unreadable"


@dataclass(frozen=True)
class Entry:
    """What became of one image.

    Attributes:
        status: "answered", "not assessed" or "unreadable".
        reason: why it is not answered, or has no report although one was asked for.
        probabilities: of the fields in order, where answered.
        overlay, report: files in the folder of the run, "" where there is none.
    """

    image: Input
    status: str
    reason: str = ""
    probabilities: list[float] = field(default_factory=list)
    overlay: str = ""
    report: str = ""


class Journal:
    """``journal.jsonl`` in the folder of a run: settings in the first line, then an entry per image.

    A line that was cut off when the run was killed is dropped; its image is done again. So is an image that has
    changed since.

    Args:
        folder: of the run.
        settings: what all answers depend on; a journal of other settings is refused.

    Raises:
        VividError: the journal is of another model or other settings, or is none.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / "journal.jsonl"
        self.entries: dict[Input, Entry] = {}
        first = json.dumps(settings, sort_keys=True)
        lines = self._lines()
        if lines and json.loads(lines[0]) != json.loads(first):
            raise VividError(
                f"{folder}: holds answers of another model or with other settings; give another folder (--out)"
            )
        for line in lines[1:]:
            entry = _entry(json.loads(line))
            self.entries[entry.image] = entry
        with whole_file(self.path) as part:
            part.write_text("".join(f"{line}\n" for line in lines or [first]), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def _lines(self) -> list[str]:
        """The whole lines of the file: each ends and is JSON."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = text.split("\n")[:-1]  # what follows the last line break was cut off
        for number, line in enumerate(lines):
            try:
                json.loads(line)
            except ValueError as error:
                if number == len(lines) - 1:
                    return lines[:-1]
                raise VividError(f"{self.path}:{number + 1}: is damaged ({error}); delete it to begin again") from error
        return lines

    def add(self, entry: Entry) -> None:
        """Write an entry down; it is on its way to the disk when this returns."""
        self.entries[entry.image] = entry
        self._file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _entry(data: dict[str, Any]) -> Entry:
    return Entry(**{**data, "image": Input(**data["image"])})
