"""A table in an Arrow file that is mapped into memory: made once, read by all processes, held decoded by none."""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from vivid_monai.errors import VividError
from vivid_monai.storage.files import whole_file

logger = logging.getLogger(__name__)

_KEY = b"vivid_monai.key"


@dataclass(frozen=True)
class ArrowFile:
    """A file that can be made again at any time from what `key` names; one with another key is not this one."""

    path: Path
    key: str

    def open(self) -> pa.Table | None:
        """The table, mapped; None: there is no such file, it is damaged, or it has another key."""
        try:
            table = _mapped(self.path)
        except (OSError, pa.ArrowException):
            return None
        key = (table.schema.metadata or {}).get(_KEY)
        return table.replace_schema_metadata() if key == self.key.encode() else None

    def open_or_make(
        self, schema: pa.Schema, batches: Iterable[pa.RecordBatch], check: Callable[[pa.Table], None] = lambda _: None
    ) -> pa.Table | None:
        """The table; where it is not there with this schema, the file is written; None, told: it cannot be written.

        Args:
            batches: of that schema; all share the dictionaries of the first.
            check: looks at the mapped table before the file takes its place; what it raises passes through.
        """
        if (table := self.open()) is not None and table.schema == schema:
            return table
        try:
            with whole_file(self.path) as part:
                with pa.ipc.new_file(os.fspath(part), schema.with_metadata({_KEY: self.key.encode()})) as out:
                    for batch in batches:
                        out.write_batch(batch)
                check(_mapped(part))
        except VividError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            logger.warning(f"{error}; its rows are held in memory instead")
            return None
        return self.open()


def _mapped(path: Path) -> pa.Table:
    table = pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()
    table.validate()  # a damaged file would otherwise be read past its end
    return table
