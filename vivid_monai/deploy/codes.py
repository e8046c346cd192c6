"""Codes of findings: from a field of a label space to the concept that DICOM receivers know."""

import json
from functools import cache
from importlib import resources
from typing import Any

from pydicom.sr.coding import Code

from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import available_label_spaces, load_label_space

PRIVATE_SCHEME = "99VIVID"
"""Designator of the codes that are only ours: 99 marks a private coding scheme (PS3.16, section 8.2)."""

MEANING_LENGTH = 64
"""Characters of a code meaning (VR LO)."""


def finding_code(field: str, label_space: str | None) -> tuple[Code, Code | None]:
    """The code of a field, and the code of its finding site where the concept alone does not say it.

    A concept of ``finding_codes.json`` has its code of SNOMED CT or DICOM. Any other has a private one, whose value is
    the concept of the label space, or the field's name where the label space is none of the package's.

    Raises:
        VividError: a private code would be no code of DICOM: a name over 64 characters or with a backslash.
    """
    known = load_label_space(label_space) if label_space in available_label_spaces() else None
    concept = known.concepts.get(field, field) if known else field
    table = _table()
    if known and (entry := table["concepts"].get(concept)):
        return _code(entry), _code(table["sites"][entry["site"]]) if "site" in entry else None
    if len(field) > MEANING_LENGTH or "\\" in field:
        raise VividError(
            f"field {field!r} cannot be a code meaning of DICOM: "
            f"give it at most {MEANING_LENGTH} characters and no backslash in its label space"
        )
    return Code(concept, PRIVATE_SCHEME, field), None


@cache
def _table() -> dict[str, Any]:
    return json.loads((resources.files("vivid_monai.deploy") / "finding_codes.json").read_text("utf-8"))


def _code(entry: dict[str, str]) -> Code:
    return Code(entry["value"], entry["scheme"], entry["meaning"])
