"""Text pieces → token ids that know which pieces they touch.

A BPE merges across the borders of pieces (a quote with the brace before it, a brace with the line end after it), so the
ids of a piece in context are not those of the piece alone. The whole text is tokenised once and every token is matched
to pieces by the tokenizer's character offsets; ids are never searched for.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from vivid_monai.errors import VividError
from vivid_monai.networks.teacher.text import Piece


class Token(NamedTuple):
    """A token id and the pieces its characters touch."""

    id: int
    touches: tuple[Piece, ...]

    @property
    def is_state(self) -> bool:
        """Whether any of its characters belongs to a state word."""
        return any(piece.is_state for piece in self.touches)


def tokenize(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece]) -> list[Token]:
    """Tokenise the joined pieces, without special tokens.

    Raises:
        VividError: where the tokenizer gives no character offsets.
    """
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
