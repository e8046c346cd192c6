"""The layout of the paper: image, prompt, then the findings as JSON, teacher forced."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vivid_monai.networks.language import LanguageModel
from vivid_monai.networks.teacher.base import LMTeacher, TeacherOutput, choose, nll_per_cell
from vivid_monai.networks.teacher.slots import branch_logits, first_tokens
from vivid_monai.networks.teacher.text import PROMPT, Piece, Token, published_pieces, read_answers, tokenize
from vivid_monai.ums.states import STATES, decode

_PROMPT = Piece(PROMPT)

Row = tuple[list[int], list[tuple[int, int]]]
"""Text after one image: token ids with EOS, and of the supervised ones their index and their column of nll."""


def text_pieces(findings: Mapping[str, str | None]) -> list[Piece]:
    """All text that follows an image: the prompt, then the target."""
    return [_PROMPT, *published_pieces(findings)]


class PublishedTeacher(LMTeacher):
    """Asks a frozen LM to write the findings of the asked fields as JSON.

    The sequence is [BOS] image embeddings, `PROMPT`, JSON, EOS; the fields stand in label-space order. A field's tokens
    are those that touch its entry; all others (outer braces, separators, EOS) belong to the last column: F' = F + 1.
    No loss: on the prompt; on any token that touches an unanswerable field's entry, which reads `null`; on anything
    where an image has no answerable field.

    `log_probs` cannot come from this sequence, in which a field follows the true states of the fields before it. They
    are computed in eval mode only (in train mode: NaN), from one further sequence in which every asked field is the
    only one and starts right after the prompt, unseen by the others.
    """

    def __init__(self, lm: LanguageModel, fields: Sequence[str]) -> None:
        super().__init__(lm, fields)
        self._eos, self._bos = lm.eos, lm.bos
        alone = [
            read_answers(lm.tokenizer, {state: text_pieces({field: state}) for state in STATES})
            for field in self.fields
        ]
        self._firsts = first_tokens(alone)
        # Whatever all fields begin with is context; one field alone must still leave a branch.
        columns = zip(*(answers.prefix[:-1] for answers in alone), strict=False)
        self._lead = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
        self._branches = [answers.prefix[len(self._lead) :] for answers in alone]
        self._row = lru_cache(maxsize=4096)(self._read_row)  # asked for by `count` and by `forward`

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        known, wanted = self.questions(embeddings, states, asked)
        nll, count = self._teacher_forced(embeddings, self._rows(known, wanted))
        if self.training:
            return TeacherOutput(nll, count, nll.new_full((*states.shape, len(STATES)), torch.nan))
        with torch.no_grad():
            return TeacherOutput(nll, count, self._ask_alone(embeddings, wanted))

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        self.check_questions(states, asked)
        return torch.tensor([len(supervised) for _, supervised in self._rows(states, asked)], device=states.device)

    def _rows(self, states: Tensor, asked: Tensor) -> list[Row]:
        pairs = zip(*torch.stack([states, asked.to(states.dtype)]).tolist(), strict=True)
        return [self._row(tuple(zip(codes, wanted, strict=True))) for codes, wanted in pairs]

    def _read_row(self, answers: tuple[tuple[int, bool], ...]) -> Row:
        """The text of one image, from the state code of each field and whether it is asked."""
        findings = {f: decode(code) for f, (code, is_asked) in zip(self.fields, answers, strict=True) if is_asked}
        tokens = tokenize(self.lm.tokenizer, text_pieces(findings))
        silent = {field for field, state in findings.items() if state is None}
        structure = len(self.fields)

        def column(token: Token) -> int | None:
            owners = [piece.field for piece in token.touches]
            if _PROMPT in token.touches or silent.intersection(owners):
                return None
            return next((self.fields.index(owner) for owner in owners if owner is not None), structure)

        columns = enumerate([*map(column, tokens), structure])
        supervised = [(index, value) for index, value in columns if value is not None]
        return [*(token.id for token in tokens), self._eos], supervised if len(silent) < len(findings) else []

    def _teacher_forced(self, embeddings: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        device, (batch, images) = embeddings.device, embeddings.shape[:2]
        start = len(self._bos)
        before = start + images
        texts = [torch.tensor([*self._bos, *[0] * images, *ids]) for ids, _ in rows]
        lengths = torch.tensor(list(map(len, texts)), device=device)
        self.lm.check_length(max(map(len, texts)))
        inputs = self.lm.embed(pad_sequence(texts, batch_first=True).to(device, non_blocking=True))
        inputs = torch.cat([inputs[:, :start], embeddings.to(inputs.dtype), inputs[:, before:]], 1)
        position = torch.arange(inputs.shape[1], device=device).expand(batch, -1)
        mask = (position < lengths[:, None]).long()

        scored = [(b, index, column) for b, (_, supervised) in enumerate(rows) for index, column in supervised]
        at = torch.tensor([(b, before + index - 1) for b, index, _ in scored], dtype=torch.int64, device=device)
        row, place = at.reshape(-1, 2).unbind(1)
        logits = self.lm.logits(inputs, mask, position, (row, place))
        targets = [rows[b][0][index] for b, index, _ in scored]
        cells = [(b, column) for b, _, column in scored]
        return nll_per_cell(logits, targets, cells, (batch, len(self.fields) + 1))

    def _ask_alone(self, embeddings: Tensor, asked: Tensor) -> Tensor:
        """Log-probabilities (B, F, 3) of the asked fields, each asked for itself."""
        cells = asked.nonzero()
        bos, lead = (self.lm.embed(ids).expand(len(embeddings), -1, -1) for ids in (self._bos, self._lead))
        branches = [(row, self._branches[field]) for row, field in cells.tolist()]
        queries = [(number, len(ids) - 1) for number, (_, ids) in enumerate(branches)]
        context = torch.cat([bos, embeddings.to(self.lm.dtype), lead], 1)
        return choose(branch_logits(self.lm, context, branches, queries), self._firsts, cells, tuple(asked.shape))[1]
