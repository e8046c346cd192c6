"""Texts of the tiny teacher as tokens, laid out and masked as its teachers do it, and its tokenizer."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import NamedTuple

import torch
from tiny_teacher_text import Questions, Text, written
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vivid_monai.networks.teacher.text import Answers, read_answers, schema_text, slot_pieces, tokenize
from vivid_monai.ums.states import STATES

EOS, PAD = "<|endoftext|>", "<|pad|>"
NO_TARGET = -100
_WORDS = (*STATES, "null")
# As GPT-2 splits: words and numbers with the space before them, the rest.
_SPLIT = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Place(NamedTuple):
    """A token of a sequence: what it must predict, whether that is a state, its position, and who owns it.

    Owner 0 is the text that all see; a token sees what comes before it of owner 0 and of its own owner.
    """

    id: int
    target: int
    is_state: bool
    position: int
    owner: int


def make_tokenizer(texts: Iterable[Text], vocabulary: int, phrases: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text can be written in it, and nothing is ever unknown. A phrase may become one token."""
    whole = "|".join(map(re.escape, phrases))
    split = rf" ?(?i:{whole})(?!\p{{L}})|{_SPLIT}" if phrases else _SPLIT
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(map(written, texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False, model_max_length=2048
    )


def lay_out(tokenizer: PreTrainedTokenizerFast, text: Text) -> list[Place]:
    """One text as the LM reads it: plain from left to right, or as the teacher of its layout asks it."""
    if not isinstance(text, Questions):
        tokens = tokenize(tokenizer, text)
        ids, states = [token.id for token in tokens], [token.is_state for token in tokens]
        return _line(ids, 0, targets=[*zip(ids[1:], states[1:], strict=True), (tokenizer.eos_token_id, False)])
    schema, report = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (schema_text(text.fields), f" {text.report}")
    )
    answers = {name: _answers(tokenizer, name) for name in text.fields}
    start = len(schema) + (max(len(answer.prefix) - 1 for answer in answers.values()) if text.short else 0)
    end = start + len(report)
    names, slots = [], []
    for owner, (name, state) in enumerate(text.answers.items(), 1):
        (*own, colon), word = answers[name].prefix, answers[name].words[_WORDS.index(state)]
        if text.short:
            names += [Place(token, NO_TARGET, False, start - len(own) + i, owner) for i, token in enumerate(own)]
            slots += [Place(colon, word[0], True, end, owner)]
        else:
            targets = [(NO_TARGET, False)] * len(own) + [(one, True) for one in word]
            slots += _line([*own, colon, *word], end, owner, targets=[*targets, (tokenizer.eos_token_id, False)])
    return [*_line(schema, 0), *names, *_line(report, start), *slots]


def batches(tokenizer: PreTrainedTokenizerFast, texts: Iterator[Text], size: int) -> Iterator[Tensor]:
    """int64 (B, L, 5), the fields of `Place`; padding is of owner −1.

    Texts of similar length go together, taken from a pool of 16 batches, so that little is computed on padding.
    """
    order = torch.Generator().manual_seed(0)
    padding = Place(tokenizer.pad_token_id, NO_TARGET, False, 0, -1)
    while True:
        pool = sorted((lay_out(tokenizer, text) for text in islice(texts, 16 * size)), key=len)
        for at in torch.randperm(16, generator=order).tolist():
            part = pool[at * size : (at + 1) * size]
            width = max(map(len, part))
            yield torch.tensor([[*places, *[padding] * (width - len(places))] for places in part])


def allowed(owner: Tensor) -> Tensor:
    """Who sees whom, bool (B, L, L), of owners (B, L); padding sees owner 0, so that no row is empty."""
    seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    return seen & torch.ones(seen.shape[1:], dtype=torch.bool).tril()


def _line(
    ids: Sequence[int], start: int, owner: int = 0, *, targets: Sequence[tuple[int, bool]] | None = None
) -> list[Place]:
    """Tokens in a row, each of which predicts the next where no targets are given."""
    targets = targets or [*((token, False) for token in ids[1:]), (NO_TARGET, False)]
    pairs = zip(ids, targets, strict=True)
    return [Place(token, *target, start + i, owner) for i, (token, target) in enumerate(pairs)]


@cache
def _answers(tokenizer: PreTrainedTokenizerFast, field: str) -> Answers:
    return read_answers(tokenizer, {state: slot_pieces(field, state) for state in _WORDS})
