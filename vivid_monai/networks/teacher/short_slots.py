"""The layout of short slots: schema and field names before the image, then one position per asked field."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from vivid_monai.networks.language import FrozenLM, KeysValues, additive
from vivid_monai.networks.teacher.base import Teacher, TeacherOutput, nll_per_cell
from vivid_monai.networks.teacher.text import read_answers, schema_text, slot_pieces
from vivid_monai.ums.states import NULL, STATES


class ShortSlotTeacher(Teacher):
    """Asks a frozen LM for the state of each asked field, with one position for each.

    The texts are those of :class:`~vivid_monai.networks.teacher.slots.SlotTeacher` in another order. For each field the
    LM reads [BOS] schema text, `\\nEdema`, image embeddings, `:`, and chooses among the first tokens of the states.
    What precedes the image is the same for all images: its keys and values are computed once. An image costs its
    embeddings, which see the schema alone and are shared by its fields, and one position for each field, which sees
    the schema, its own name, the image and itself. F' = F.

    Args:
        lm: the language model.
        fields: names of the fields, in label-space order.
    """

    def __init__(self, lm: FrozenLM, fields: Sequence[str]) -> None:
        super().__init__(fields, lm.embed_dim, embed_scale=lm.embed_scale)
        self.lm = lm
        answers = [
            read_answers(lm.tokenizer, {state: slot_pieces(field, state) for state in STATES}) for field in self.fields
        ]
        schema = lm.bos + lm.tokenizer(schema_text(self.fields), add_special_tokens=False)["input_ids"]
        names = [answer.prefix[:-1] for answer in answers]
        # Every name ends right before the image, so that all fields see it at the same positions.
        self._start = len(schema) + max(map(len, names))
        self._ids = schema + [token for name in names for token in name]
        self._positions = [*range(len(schema)), *(self._start - len(n) + i for n in names for i in range(len(n)))]
        self._owners = [-1] * len(schema) + [field for field, name in enumerate(names) for _ in name]
        self._last = [answer.prefix[-1] for answer in answers]
        firsts = [[word[0] for word in answer.words] for answer in answers]
        self._words = sorted({token for row in firsts for token in row})
        self._columns = [[self._words.index(token) for token in row] for row in firsts]
        self._known: dict[torch.dtype | None, KeysValues] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._known.clear()  # weights that move or change type leave the keys and values behind
        return super()._apply(fn, recurse)

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        self.check_inputs(embeddings, states, asked)
        device, (batch, images) = embeddings.device, embeddings.shape[:2]
        shape = tuple(asked.shape)
        rows, fields = asked.nonzero(as_tuple=True)
        slots = (asked.cumsum(1) - 1)[rows, fields]
        width = int(asked.sum(1).max())
        self.lm.check_length(self._start + images + 1, masked=len(self._ids) + images + width)

        slot_field = asked.new_full((batch, width), -2, dtype=torch.int64)  # −2: filled up, sees the schema alone
        slot_field[rows, slots] = fields
        last = torch.tensor(self._last, device=device)
        context = torch.cat([embeddings.to(self.lm.dtype), self.lm.embed(last[slot_field.clamp(min=0)])], 1)
        position = torch.cat([torch.arange(images, device=device), last.new_full((width,), images)]) + self._start
        words = torch.tensor(self._words, device=device)
        at = rows, images + slots
        mask = additive(self._allowed(slot_field, images)[:, None], self.lm.dtype)
        logits = self.lm.logits(context, mask, position.expand(batch, -1), at, self._before(), words=words)

        chosen = logits.gather(1, torch.tensor(self._columns, device=device)[fields])
        log_probs = logits.new_full((*shape, len(STATES)), torch.nan)
        log_probs[rows, fields] = chosen.detach().log_softmax(1)
        codes = states[rows, fields]
        targets = codes.masked_fill(codes == NULL, -100).tolist()
        cells = torch.stack([rows, fields], 1).tolist()
        return TeacherOutput(*nll_per_cell(chosen, targets, cells, (shape[0], shape[1])), log_probs)

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        self.check_questions(states, asked)
        return (asked & (states != NULL)).sum(1)

    def _allowed(self, slot_field: Tensor, images: int) -> Tensor:
        """Who sees whom: bool (B, images + slots, known + images + slots)."""
        batch, width = slot_field.shape
        owners = torch.tensor(self._owners, device=slot_field.device)
        seen_by = torch.cat([slot_field.new_full((batch, images), -1), slot_field], 1)
        known = (owners == -1) | (owners == seen_by[..., None])
        now = torch.ones(images + width, images + width, dtype=torch.bool, device=slot_field.device).tril()
        now[images:, images:] = torch.eye(width, dtype=torch.bool, device=slot_field.device)
        return torch.cat([known, now.expand(batch, -1, -1)], 2)

    def _before(self) -> KeysValues:
        """Keys and values of the schema and of every field's name after it."""
        device = self.lm.device
        # Under autocast the same weights give keys and values of another type.
        kind = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        if kind not in self._known:
            owners = torch.tensor(self._owners, device=device)
            earlier = torch.ones(len(owners), len(owners), dtype=torch.bool, device=device).tril()
            allowed = earlier & ((owners == -1) | (owners == owners[:, None]))
            positions = torch.tensor(self._positions, device=device)
            self._known[kind] = self.lm.keys_values(self._ids, positions=positions, allowed=allowed)
        return self._known[kind]
