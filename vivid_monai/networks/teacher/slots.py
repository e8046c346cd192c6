"""The layout of slots: schema, image, then one answer slot per asked field."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from vivid_monai.errors import VividError
from vivid_monai.networks.teacher.base import Teacher, TeacherOutput, nll_per_cell
from vivid_monai.networks.teacher.branches import Query, branch_logits, check_padding_side
from vivid_monai.networks.teacher.frozen_lm import FrozenLM, KeysValues
from vivid_monai.networks.teacher.pieces import Answers, read_answers
from vivid_monai.networks.teacher.text import schema_text, slot_pieces
from vivid_monai.ums.states import NULL, STATES


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
