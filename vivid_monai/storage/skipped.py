"""Images that could not be read: what stands in for one, and the list of them."""

import csv
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from vivid_monai.storage.files import whole_file


@dataclass(frozen=True)
class Skipped:
    """One image that could not be read, and why."""

    path: str
    reason: str


class SkipReport:
    """Collects what was skipped and how often it was met; ``len()`` is the number of different paths."""

    def __init__(self) -> None:
        self.counts: Counter[Skipped] = Counter()

    def __len__(self) -> int:
        return len({skipped.path for skipped in self.counts})

    def add(self, skipped: Iterable[Skipped]) -> list[Skipped]:
        """Count `skipped` (a batch's ``"skipped"``) and return those met for the first time."""
        met = Counter(skipped)
        new = [one for one in met if one not in self.counts]
        self.counts += met
        return new

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file with columns path, reason, times; whole or not at all.

        Raises:
            VividError: the file cannot be written.
        """
        with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["path", "reason", "times"])
            rows.writerows([one.path, one.reason, times] for one, times in self.counts.items())
