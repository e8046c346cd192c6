"""The layout of slots: schema, image, then one answer slot per asked field."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from vivid_monai.errors import VividError
from vivid_monai.networks.language import FrozenLM, KeysValues, additive
from vivid_monai.networks.teacher.base import Teacher, TeacherOutput, nll_per_cell
from vivid_monai.networks.teacher.text import Answers, read_answers, schema_text, slot_pieces
from vivid_monai.ums.states import NULL, STATES

Ids = Sequence[int]


class Query(NamedTuple):
    """A position whose logits are wanted: token `offset` of branch `branch` of row `row`."""

    row: int
    branch: int
    offset: int


def check_padding_side(padding_side: str) -> str:
    """Return "left" or "right"; anything else is a VividError."""
    if padding_side not in ("left", "right"):
        raise VividError(f"padding_side must be left or right, got {padding_side!r}")
    return padding_side


def branch_logits(
    lm: FrozenLM,
    context: Tensor,
    branches: Sequence[Sequence[Ids]],
    queries: Sequence[Query],
    *,
    past: KeysValues | None = None,
    padding_side: str = "right",
    words: Tensor | None = None,
) -> Tensor:
    """Logits float32 (len(queries), vocabulary) of branches after a context.

    Args:
        lm: the language model.
        context: (B, C, embed_dim) embeddings, C ≥ 1, read causally.
        branches: per row its branches' token ids; rows may differ in number and length.
        queries: where logits are wanted.
        past: keys and values of a text before the context, shared by all rows.
        padding_side: where shorter rows are filled; no effect on any result.
        words: int64 (W,): only these tokens' logits, (len(queries), W).

    Raises:
        VividError: where the sequence is too long for the model.
    """
    batch, length = context.shape[:2]
    before = past[0][0].shape[2] if past else 0
    widths = [sum(map(len, row)) for row in branches]
    width = max(widths)
    longest = max((len(ids) for row in branches for ids in row), default=0)
    lm.check_length(before + length + longest, masked=before + length + width)

    # Columns of the branches' part: token id, branch number (context 0, padding −1), offset within the branch.
    filled = torch.tensor([0, -1, 0]).repeat(batch, width, 1)
    starts: list[list[int]] = []
    for row, (texts, used) in enumerate(zip(branches, widths, strict=True)):
        column = width - used if padding_side == "left" else 0
        cells = [(token, number, at) for number, ids in enumerate(texts, 1) for at, token in enumerate(ids)]
        if cells:
            filled[row, column : column + used] = torch.tensor(cells)
        starts.append(list(accumulate(map(len, texts), initial=column)))
    ids, number, offset = filled.to(context.device).unbind(-1)

    segment = torch.cat([number.new_zeros(batch, length), number], 1)
    position = torch.cat([torch.arange(length, device=context.device).expand(batch, -1), length + offset], 1) + before
    earlier = torch.ones(length + width, length + width, dtype=torch.bool, device=context.device).tril()
    # Padding sees the context, so that no row of the mask is empty, and is seen by nothing but padding.
    allowed = earlier & ((segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None]))
    allowed = torch.cat([allowed.new_ones(batch, length + width, before), allowed], 2)

    rows = torch.tensor([query.row for query in queries], dtype=torch.int64, device=context.device)
    columns = [length + starts[query.row][query.branch] + query.offset for query in queries]
    return lm.logits(
        torch.cat([context, lm.embed(ids)], 1),
        additive(allowed[:, None], lm.dtype),
        position,
        (rows, torch.tensor(columns, dtype=torch.int64, device=context.device)),
        past,
        words=words,
    )


class SlotTeacher(Teacher):
    """Asks a frozen LM for the state of each asked field, every field for itself.

    The sequence is [BOS] schema text, image embeddings, and for each asked field a branch `\\nEdema: present` that sees
    the schema, the image and itself, and starts at the same position as all others. Loss is on the state word alone.
    F' = F.

    Args:
        lm: the language model.
        fields: names of the fields, in label-space order.
        cache_schema: compute the schema's keys and values once and share them; without it they are computed anew with
            every batch, to the same result.
        padding_side: where shorter rows of slots are filled ("left" or "right"); no effect on any result.
        choose_from: "vocabulary": the loss is that of the LM, over every token of the state word; or "states": that of
            the choice among the states' first tokens, all others set aside, so that the LM's head has three rows.
    """

    def __init__(
        self,
        lm: FrozenLM,
        fields: Sequence[str],
        *,
        cache_schema: bool = True,
        padding_side: str = "right",
        choose_from: str = "vocabulary",
    ) -> None:
        super().__init__(fields, lm.embed_dim, embed_scale=lm.embed_scale)
        if choose_from not in ("vocabulary", "states"):
            raise VividError(f"choose_from must be vocabulary or states, got {choose_from!r}")
        self.lm = lm
        self.choose_from = choose_from
        self.cache_schema = cache_schema
        self.padding_side = check_padding_side(padding_side)
        self.answers = [
            read_answers(lm.tokenizer, {state: slot_pieces(field, state) for state in STATES}) for field in self.fields
        ]
        if choose_from == "states":
            self.answers = [Answers(prefix, tuple((word[0],) for word in words)) for prefix, words in self.answers]
        self._firsts = [[word[0] for word in words] for _, words in self.answers]
        self._words = sorted({token for row in self._firsts for token in row})
        self._columns = [[self._words.index(token) for token in row] for row in self._firsts]
        self.schema_ids = lm.bos + lm.tokenizer(schema_text(self.fields), add_special_tokens=False)["input_ids"]
        self._schema: dict[torch.dtype | None, KeysValues] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._schema.clear()  # weights that move or change type leave the keys and values behind
        return super()._apply(fn, recurse)

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        self.check_inputs(embeddings, states, asked)
        branches: list[list[Sequence[int]]] = []
        queries: list[Query] = []
        targets: list[int] = []
        cells: list[tuple[int, int]] = []
        first: list[int] = []
        for row, (codes, wanted) in enumerate(zip(states.tolist(), asked.tolist(), strict=True)):
            texts: list[Sequence[int]] = []
            for field, (code, is_asked) in enumerate(zip(codes, wanted, strict=True)):
                if not is_asked:
                    continue
                prefix, answers = self.answers[field]
                # An unanswerable field is asked all the same, to know what the teacher thinks, but nothing is scored.
                word = (-100,) if code == NULL else answers[code]
                first.append(len(queries))
                queries += [Query(row, len(texts), len(prefix) - 1 + step) for step in range(len(word))]
                targets += word
                cells += [(row, field)] * len(word)
                texts.append((*prefix, *word[:-1]))
            branches.append(texts)
        context, past = self._context(embeddings)
        shape = (len(states), len(self.fields))
        few = self.choose_from == "states"
        words = torch.tensor(self._words, device=self.lm.device) if few else None
        options: dict[str, Any] = {"past": past, "padding_side": self.padding_side, "words": words}
        logits = branch_logits(self.lm, context, branches, queries, **options)
        log_probs = logits.new_full((*shape, len(STATES)), torch.nan)
        if not first:
            return TeacherOutput(*nll_per_cell(logits, targets, cells, shape), log_probs)
        rows, columns = torch.tensor([cells[at] for at in first], device=logits.device).unbind(1)
        starts = torch.tensor(self._columns if few else self._firsts, device=logits.device)[columns]
        chosen = logits[first].gather(1, starts)
        log_probs[rows, columns] = chosen.detach().log_softmax(1)
        if few:
            codes = states[rows, columns]
            logits, targets = chosen, codes.masked_fill(codes == NULL, -100).tolist()
        return TeacherOutput(*nll_per_cell(logits, targets, cells, shape), log_probs)

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        self.check_questions(states, asked)
        lengths = torch.tensor([[len(word) for word in answer.words] for answer in self.answers], device=states.device)
        tokens = lengths.expand(len(states), -1, -1).gather(2, states.clamp(min=0)[..., None])[..., 0]
        return (tokens * (asked & (states != NULL))).sum(1)

    def _context(self, embeddings: Tensor) -> tuple[Tensor, KeysValues | None]:
        """What precedes the slots: embeddings to compute, and what is already computed."""
        image = embeddings.to(self.lm.dtype)
        if not self.cache_schema:
            schema = self.lm.embed(self.schema_ids).expand(len(image), -1, -1)
            return torch.cat([schema, image], 1), None
        # Under autocast the same weights give keys and values of another type.
        device = self.lm.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if kind not in self._schema:
            self._schema[kind] = self.lm.keys_values(self.schema_ids)
        return image, self._schema[kind]
