"""The teacher's texts, cut into pieces that know which field they belong to.

Two layouts share the words for states (`vivid_monai.ums.states.STATES`):

* slots: `schema_text(fields)`, the image, then for each asked field `slot_pieces(field, state)`.
* published: the image, `PROMPT`, then `published_pieces({field: state})`, whose texts join to UMS findings as JSON.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vivid_monai.ums.states import STATES

PROMPT = "Findings in this image as JSON:\n"


class Piece(NamedTuple):
    """A stretch of text, the field it belongs to (None: to no field), and whether it is that field's state word."""

    text: str
    field: str | None = None
    is_state: bool = False


def schema_text(fields: Sequence[str]) -> str:
    """Name all states and, in alphabetical order, all fields; the image embeddings follow right after."""
    return f"Each finding is one of: {', '.join(STATES)}.\nFindings: {', '.join(sorted(fields))}.\nImage:"


def slot_pieces(field: str, state: str) -> list[Piece]:
    """One answer slot: a line with the field's name, then its state."""
    return [Piece(f"\n{field}: ", field), Piece(state, field, is_state=True)]


def published_pieces(findings: Mapping[str, str | None]) -> list[Piece]:
    """The target of the published layout.

    The texts join to `json.dumps({"findings": {field: {"state": …}}}, indent=2, ensure_ascii=False)`. A field's pieces
    cover its whole entry, from its indentation to its closing brace. A state of None becomes `null`.
    """
    if not findings:
        return [Piece('{\n  "findings": {}\n}')]
    pieces = [Piece('{\n  "findings": {\n')]
    for number, (field, state) in enumerate(findings.items()):
        quote = "" if state is None else '"'
        pieces += [Piece(",\n")] if number else []
        pieces += [
            Piece(f'    {json.dumps(field, ensure_ascii=False)}: {{\n      "state": {quote}', field),
            Piece("null" if state is None else state, field, is_state=True),
            Piece(f"{quote}\n    }}", field),
        ]
    return [*pieces, Piece("\n  }\n}")]
