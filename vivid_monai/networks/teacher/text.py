"""The teacher's texts, cut into pieces that know which field they belong to.

Two layouts share the words for states (`vivid_monai.ums.states.STATES`):

* slots: `schema_text(fields)`, the image, then for each asked field `slot_pieces(field, state)`.
* published: the image, `PROMPT`, then `published_pieces({field: state})`, whose texts join to UMS findings as JSON.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from vivid_monai.errors import VividError
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


class Token(NamedTuple):
    """A token id and the pieces its characters touch."""

    id: int
    touches: tuple[Piece, ...]

    @property
    def is_state(self) -> bool:
        """Whether any of its characters belongs to a state word."""
        return any(piece.is_state for piece in self.touches)


def tokenize(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece]) -> list[Token]:
    """Tokenise the joined pieces, without special tokens; VividError where the tokenizer gives no character offsets."""
    if not tokenizer.is_fast:
        raise VividError(
            f"tokenizer {tokenizer.name_or_path!r} gives no character offsets, which say what tokens carry loss; "
            "use a fast tokenizer (a folder with tokenizer.json)"
        )
    text = "".join(piece.text for piece in pieces)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    piece_ends = list(accumulate(len(piece.text) for piece in pieces))
    tokens, previous_end = [], 0
    for token_id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        # Byte-level tokenizers may report offsets without the token's leading space, and repeat them for the bytes of
        # one character: starting where the last token ended covers the first, min() the second.
        start, previous_end = min(start, previous_end), max(end, previous_end)
        first, last = bisect_right(piece_ends, start), bisect_left(piece_ends, max(end, start + 1))
        tokens.append(Token(token_id, tuple(pieces[first : last + 1])))
    return tokens


class Answers(NamedTuple):
    """How one field's answer reads in tokens.

    Attributes:
        prefix: ids up to the state word; the logits after its last id choose the state.
        words: for each of `STATES` the ids of its word; their first ids differ.
    """

    prefix: tuple[int, ...]
    words: tuple[tuple[int, ...], ...]


def read_answers(tokenizer: PreTrainedTokenizerBase, versions: Mapping[str, Sequence[Piece]]) -> Answers:
    """Compare the texts that differ only in the state word (state → pieces), in context.

    Raises:
        VividError: where the states cannot be told apart by their first token in this context.
    """
    prefixes, words = [], []
    for pieces in versions.values():
        tokens = tokenize(tokenizer, pieces)
        first = next(index for index, token in enumerate(tokens) if token.is_state)
        prefixes.append(tuple(token.id for token in tokens[:first]))
        words.append(tuple(token.id for token in tokens if token.is_state))
    if len(set(prefixes)) > 1 or len({word[0] for word in words}) < len(words):
        starts = [f"{state}: {tokenizer.decode([word[0]])!r}" for state, word in zip(versions, words, strict=True)]
        raise VividError(
            f"tokenizer {tokenizer.name_or_path!r} does not tell the states apart by their first token "
            f"({', '.join(starts)}); use a teacher with another tokenizer"
        )
    return Answers(prefixes[0], tuple(words))
