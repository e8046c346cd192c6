"""The layout of the paper: image, prompt, then the findings as JSON, teacher forced."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from vivid_monai.networks.language import LanguageModel
from vivid_monai.networks.teacher.base import Teacher, TeacherOutput, nll_per_cell
from vivid_monai.networks.teacher.slots import Query, branch_logits
from vivid_monai.networks.teacher.text import PROMPT, Piece, Token, published_pieces, read_answers, tokenize
from vivid_monai.ums.states import STATES, decode

_PROMPT = Piece(PROMPT)


def text_pieces(findings: Mapping[str, str | None]) -> list[Piece]:
    """All text that follows an image: the prompt, then the target."""
    return [_PROMPT, *published_pieces(findings)]


class Row(NamedTuple):
    """The text after one image: token ids with EOS, and of the supervised ones their index and their column of nll."""

    ids: list[int]
    supervised: list[int]
    columns: list[int]


class PublishedTeacher(Teacher):
    """Asks a frozen LM to write the findings of the asked fields as JSON.

    The sequence is [BOS] image embeddings, `PROMPT`, JSON, EOS; the fields stand in label-space order. A field's tokens
    are those that touch its entry; all others (outer braces, separators, EOS) belong to the last column: F' = F + 1.
    No loss: on the prompt; on any token that touches an unanswerable field's entry, which reads `null`; on anything
    where an image has no answerable field.

    `log_probs` cannot come from this sequence, in which a field follows the true states of the fields before it. They
    are computed in eval mode only (in train mode: NaN), from one further sequence in which every asked field is the
    only one and starts right after the prompt, unseen by the others.

    Args:
        lm: the language model.
        fields: names of the fields, in label-space order.
    """

    def __init__(self, lm: LanguageModel, fields: Sequence[str]) -> None:
        super().__init__(fields, lm.embed_dim, embed_scale=lm.embed_scale)
        self.lm = lm
        self._eos, self._bos = lm.eos, lm.bos
        alone = [
            read_answers(lm.tokenizer, {state: text_pieces({field: state}) for state in STATES})
            for field in self.fields
        ]
        self._first = [[word[0] for word in answers.words] for answers in alone]
        # Whatever all fields begin with is context; one field alone must still leave a branch.
        columns = zip(*(answers.prefix[:-1] for answers in alone), strict=False)
        self._lead = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
        self._branches = [answers.prefix[len(self._lead) :] for answers in alone]
        self._row = lru_cache(maxsize=4096)(self._read_row)  # asked for by `count` and by `forward`

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        known, wanted = self.questions(embeddings, states, asked)
        nll, count = self._teacher_forced(embeddings, self._rows(known, wanted))
        log_probs = nll.new_full((*states.shape, len(STATES)), torch.nan)
        if not self.training:
            with torch.no_grad():
                self._ask_alone(embeddings, wanted.tolist(), log_probs)
        return TeacherOutput(nll, count, log_probs)

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        self.check_questions(states, asked)
        return torch.tensor([len(row.supervised) for row in self._rows(states, asked)], device=states.device)

    def _rows(self, states: Tensor, asked: Tensor) -> list[Row]:
        pairs = zip(*torch.stack([states, asked.to(states.dtype)]).tolist(), strict=True)
        return [self._row(tuple(zip(codes, wanted, strict=True))) for codes, wanted in pairs]

    def _read_row(self, answers: tuple[tuple[int, bool], ...]) -> Row:
        """The text of one image, from the state code of each field and whether it is asked."""
        findings = {f: decode(code) for f, (code, is_asked) in zip(self.fields, answers, strict=True) if is_asked}
        tokens = tokenize(self.lm.tokenizer, text_pieces(findings))
        column_of = {field: number for number, field in enumerate(self.fields)}
        silent = {field for field, state in findings.items() if state is None}
        structure = len(self.fields)

        def column(token: Token) -> int | None:
            owners = [piece.field for piece in token.touches]
            if _PROMPT in token.touches or silent.intersection(owners):
                return None
            return next((column_of[owner] for owner in owners if owner is not None), structure)

        columns = [*map(column, tokens), structure]
        if len(silent) == len(findings):
            columns = [None] * len(columns)
        supervised = [index for index, value in enumerate(columns) if value is not None]
        ids = [*(token.id for token in tokens), self._eos]
        return Row(ids, supervised, [value for value in columns if value is not None])

    def _teacher_forced(self, embeddings: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        batch, images = embeddings.shape[:2]
        before = len(self._bos) + images
        lengths = [before + len(row.ids) for row in rows]
        length = max(lengths)
        self.lm.check_length(length)

        device = embeddings.device
        ids = torch.zeros(batch, length, dtype=torch.int64)
        for number, row in enumerate(rows):
            own = [*self._bos, *[0] * images, *row.ids]
            ids[number, : len(own)] = torch.tensor(own)
        position = torch.arange(length, device=device).expand(batch, -1)
        image_from = len(self._bos)
        inputs = self.lm.embed(ids.to(device, non_blocking=True))
        before_, after = inputs[:, :image_from], inputs[:, image_from + images :]
        inputs = torch.cat([before_, embeddings.to(inputs.dtype), after], 1)
        mask = position < torch.tensor(lengths, device=device)[:, None]

        at = [(b, before + index - 1) for b, row in enumerate(rows) for index in row.supervised]
        targets = [row.ids[index] for row in rows for index in row.supervised]
        cells = [(b, column) for b, row in enumerate(rows) for column in row.columns]
        places = torch.tensor(at, dtype=torch.int64, device=device).reshape(-1, 2)
        logits = self.lm.logits(inputs, mask.long(), position, (places[:, 0], places[:, 1]))
        return nll_per_cell(logits, targets, cells, (batch, len(self.fields) + 1))

    def _ask_alone(self, embeddings: Tensor, asked: list[list[bool]], log_probs: Tensor) -> None:
        """Fill log_probs of the asked fields, each asked for itself."""
        wanted = [[field for field, is_asked in enumerate(row) if is_asked] for row in asked]
        cells = [(row, field) for row, fields in enumerate(wanted) for field in fields]
        if not cells:
            return
        queries = [
            Query(row, branch, len(self._branches[field]) - 1)
            for row, fields in enumerate(wanted)
            for branch, field in enumerate(fields)
        ]
        ends = (self.lm.embed(ids).expand(len(embeddings), -1, -1) for ids in (self._bos, self._lead))
        context = torch.cat([next(ends), embeddings.to(self.lm.dtype), next(ends)], 1)
        branches = [[self._branches[field] for field in fields] for fields in wanted]
        logits = branch_logits(self.lm, context, branches, queries)
        places = torch.tensor(cells)
        first = torch.tensor(self._first)[places[:, 1]].to(logits.device, non_blocking=True)
        log_probs[places.to(logits.device, non_blocking=True).unbind(1)] = logits.gather(1, first).log_softmax(1)
