"""What every adapter hands over: rows in the manifest's columns, and what has to be told about them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vivid_monai.data.label_spaces import LabelSpaceSource
from vivid_monai.data.sources.rows import Rows

Contradictions = Literal["keep", "skip", "error"]


@dataclass(kw_only=True)
class Source:
    """A data set as its adapter read it.

    Attributes:
        dataset: its name, for provenance.
        rows: the manifest's columns that the data set has; ``split`` is null where the patient's hash shall decide.
        label_space: the space of the ``finding.…`` columns.
        image_root: folder that relative image paths start from.
        files: the tables and lists that were read; the card holds their hashes.
        official: splits that the data set brings itself.
        label_policy: how cells became states, in a sentence or two.
        contradictions: what to do by default with rows that contradict themselves.
        val: default fraction of the patients without an official split that go to val.
        test: the same for test.
    """

    dataset: str
    rows: Rows
    label_space: LabelSpaceSource
    image_root: Path
    files: list[Path]
    official: frozenset[str]
    label_policy: str
    contradictions: Contradictions
    val: float
    test: float
