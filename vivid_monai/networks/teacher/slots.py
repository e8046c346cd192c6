"""Slot layouts: after schema and image, each asked field is asked for itself, in a branch or in one position."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vivid_monai.errors import VividError
from vivid_monai.networks.language import KeysValues, LanguageModel, additive
from vivid_monai.networks.teacher.base import LMTeacher, TeacherOutput, choose, is_answered, nll_per_cell
from vivid_monai.networks.teacher.text import Answers, read_answers, schema_text, slot_pieces
from vivid_monai.ums.states import NULL, STATES


def branch_logits(
    lm: LanguageModel,
    context: Tensor,
    branches: Sequence[tuple[int, Sequence[int]]],
    queries: Sequence[tuple[int, int]],
    *,
    past: KeysValues | None = None,
    words: Tensor | None = None,
) -> Tensor:
    """Logits float32 (len(queries), vocabulary) of branches, each of which sees the context and itself.

    Args:
        lm: the language model.
        context: (B, C, embed_dim) embeddings, C ≥ 1, read causally.
        branches: row and token ids of each; all start at the same position. Rows may have any number of them.
        queries: where logits are wanted: the number of a branch, and which of its tokens.
        past: keys and values of a text before the context, shared by all rows.
        words: int64 (W,): only these tokens' logits, (len(queries), W).

    Raises:
        VividError: where the sequence is too long for the model.
    """
    batch, length = context.shape[:2]
    before = past[0][0].shape[2] if past else 0
    # Columns of the branches' part: token id, branch number (context 0, padding −1), offset within the branch.
    rows: list[list[tuple[int, int, int]]] = [[] for _ in range(batch)]
    starts: list[tuple[int, int]] = []
    for branch, (row, text) in enumerate(branches, 1):
        starts.append((row, length + len(rows[row])))
        rows[row] += [(token, branch, at) for at, token in enumerate(text)]
    width = max(map(len, rows))
    longest = max((len(text) for _, text in branches), default=0)
    lm.check_length(before + length + longest, masked=before + length + width)
    filled = torch.tensor([[*row, *[(0, -1, 0)] * (width - len(row))] for row in rows], dtype=torch.int64)
    ids, number, offset = filled.reshape(batch, width, 3).to(context.device, non_blocking=True).unbind(-1)

    segment = torch.cat([number.new_zeros(batch, length), number], 1)
    position = torch.cat([torch.arange(length, device=context.device).expand(batch, -1), length + offset], 1) + before
    earlier = torch.ones(length + width, length + width, dtype=torch.bool, device=context.device).tril()
    # Padding sees the context, so that no row of the mask is empty, and is seen by nothing but padding.
    allowed = earlier & ((segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None]))
    allowed = torch.cat([allowed.new_ones(batch, length + width, before), allowed], 2)

    places = [(starts[branch][0], starts[branch][1] + at) for branch, at in queries]
    wanted = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).to(context.device, non_blocking=True)
    embedded = torch.cat([context, lm.embed(ids)], 1)
    mask = additive(allowed[:, None], lm.dtype)
    return lm.logits(embedded, mask, position, (wanted[:, 0], wanted[:, 1]), past, words=words)


class SharedText:
    """Keys and values of a text that precedes every sequence, computed once for as long as they stay right.

    They are computed anew where the LM has moved or changed its type, under another autocast dtype, and, as long as
    adapters are trained, at every call. Arguments are those of `LanguageModel.keys_values`, on the CPU.
    """

    def __init__(self, lm: LanguageModel, ids: Sequence[int], **places: Tensor) -> None:
        self.lm, self.ids, self._places = lm, list(ids), places
        self._known: dict[tuple[int, torch.dtype | None], KeysValues] = {}

    def __call__(self) -> KeysValues:
        """The keys and values, on the LM's device."""
        device = self.lm.device
        kind = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        key = (self.lm.moves, kind)
        if key in self._known and not self.lm.trainable:
            return self._known[key]
        places = {name: place.to(device, non_blocking=True) for name, place in self._places.items()}
        computed = self.lm.keys_values(self.ids, **places)
        if not self.lm.trainable:
            self._known = {old: value for old, value in self._known.items() if old[0] == self.lm.moves}
            self._known[key] = computed
        return computed


class SlotTeacher(LMTeacher):
    """Asks a frozen LM for the state of each asked field, every field for itself.

    The sequence is [BOS] schema text, image embeddings, and for each asked field a branch `\\nEdema: present` that sees
    the schema, the image and itself, and starts at the same position as all others. Loss is on the state word alone.
    F' = F.

    Args:
        lm, fields: see `LMTeacher`.
        choose_from: "vocabulary": the loss is that of the LM, over every token of the state word; or "states": that of
            the choice among the states' first tokens, all others set aside, so that the LM's head has three rows.
    """

    def __init__(self, lm: LanguageModel, fields: Sequence[str], *, choose_from: str = "vocabulary") -> None:
        super().__init__(lm, fields)
        if choose_from not in ("vocabulary", "states"):
            raise VividError(f"choose_from must be vocabulary or states, got {choose_from!r}")
        self.choose_from = choose_from
        self.answers = _read_slots(lm, self.fields)
        self._words, self._columns = None, first_tokens(self.answers)
        if choose_from == "states":
            self.answers = [Answers(prefix, tuple(word[:1] for word in words)) for prefix, words in self.answers]
            self._words, self._columns = self._columns.unique(return_inverse=True)
        self.schema_ids = schema_ids(lm, self.fields)
        self._schema = SharedText(lm, self.schema_ids)

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        known, wanted = self.questions(embeddings, states, asked)
        shape, cells, device = tuple(known.shape), wanted.nonzero(), embeddings.device
        codes = known[wanted]
        branches: list[tuple[int, Sequence[int]]] = []
        queries: list[tuple[int, int]] = []
        targets: list[int] = []
        scored: list[tuple[int, int]] = []
        first: list[int] = []
        for branch, ((row, field), code) in enumerate(zip(cells.tolist(), codes.tolist(), strict=True)):
            prefix, answers = self.answers[field]
            # An unanswerable field is asked all the same, to know what the teacher thinks, but nothing is scored.
            word = (-100,) if code == NULL else answers[code]
            first.append(len(queries))
            queries += [(branch, len(prefix) - 1 + step) for step in range(len(word))]
            targets += word
            scored += [(row, field)] * len(word)
            branches.append((row, (*prefix, *word[:-1])))
        context, words = embeddings.to(self.lm.dtype), None if self._words is None else self._words.to(device)
        logits = branch_logits(self.lm, context, branches, queries, past=self._schema(), words=words)
        at = torch.tensor(first, dtype=torch.int64, device=device)
        chosen, log_probs = choose(logits[at], self._columns, cells, shape)
        if words is None:
            return TeacherOutput(*nll_per_cell(logits, targets, scored, shape), log_probs)
        return TeacherOutput(*nll_per_cell(chosen, _targets(codes), cells, shape), log_probs)

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        self.check_questions(states, asked)
        lengths = torch.tensor([[len(word) for word in answer.words] for answer in self.answers], device=states.device)
        tokens = lengths.expand(len(states), -1, -1).gather(2, states.clamp(min=0)[..., None])[..., 0]
        return (tokens * is_answered(states, asked)).sum(1)


def schema_ids(lm: LanguageModel, fields: Sequence[str]) -> list[int]:
    """Token ids of the schema's text, BOS first where the model expects it."""
    return lm.bos + lm.tokenizer(schema_text(fields), add_special_tokens=False)["input_ids"]


def first_tokens(answers: Sequence[Answers]) -> Tensor:
    """The first token of each field's states, int64 (F, 3)."""
    return torch.tensor([[word[0] for word in answer.words] for answer in answers])


def _read_slots(lm: LanguageModel, fields: Sequence[str]) -> list[Answers]:
    return [read_answers(lm.tokenizer, {state: slot_pieces(field, state) for state in STATES}) for field in fields]


def _targets(codes: Tensor) -> Tensor:
    return codes.masked_fill(codes == NULL, -100)


class ShortSlotTeacher(LMTeacher):
    """Asks a frozen LM for the state of each asked field, with one position for each.

    The texts are those of `SlotTeacher` in another order. For each field the LM reads [BOS] schema text, `\\nEdema`,
    image embeddings, `:`, and chooses among the first tokens of the states. What precedes the image is the same for all
    images: its keys and values are computed once. An image costs its embeddings, which see the schema alone and are
    shared by its fields, and one position for each field, which sees the schema, its own name, the image and itself.
    F' = F.
    """

    def __init__(self, lm: LanguageModel, fields: Sequence[str]) -> None:
        super().__init__(lm, fields)
        answers = _read_slots(lm, self.fields)
        schema = schema_ids(lm, self.fields)
        names = [answer.prefix[:-1] for answer in answers]
        # Every name ends right before the image, so that all fields see it at the same positions.
        self._start = len(schema) + max(map(len, names))
        positions = [*range(len(schema)), *(self._start - len(n) + i for n in names for i in range(len(n)))]
        self._owners = torch.tensor([-1] * len(schema) + [field for field, name in enumerate(names) for _ in name])
        # Each name sees the schema and itself.
        allowed = (self._owners == -1) | (self._owners == self._owners[:, None])
        text = schema + [token for name in names for token in name]
        self._before = SharedText(lm, text, positions=torch.tensor(positions), allowed=allowed.tril())
        self._last = torch.tensor([answer.prefix[-1] for answer in answers])
        self._words, self._columns = first_tokens(answers).unique(return_inverse=True)

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        # Where to look is worked out on the CPU; nothing below waits for the GPU.
        known, wanted = self.questions(embeddings, states, asked)
        batch, images = embeddings.shape[:2]
        cells = wanted.nonzero()
        rows, fields = cells.unbind(1)
        slots = (wanted.cumsum(1) - 1)[rows, fields]
        width = int(wanted.sum(1).max())
        self.lm.check_length(self._start + images + 1, masked=len(self._owners) + images + width)

        def put(tensor: Tensor) -> Tensor:
            return tensor.to(embeddings.device, non_blocking=True)

        slot_field = torch.full((batch, width), -2)  # −2: filled up, sees the schema alone
        slot_field[rows, slots] = fields
        last = self.lm.embed(put(self._last[slot_field.clamp(min=0)]))
        position = torch.cat([torch.arange(images), torch.full((width,), images)]) + self._start
        logits = self.lm.logits(
            torch.cat([embeddings.to(self.lm.dtype), last], 1),
            additive(put(self._allowed(slot_field, images)[:, None]), self.lm.dtype),
            put(position).expand(batch, -1),
            (put(rows), put(images + slots)),
            self._before(),
            words=put(self._words),
        )
        shape = tuple(known.shape)
        chosen, log_probs = choose(logits, self._columns, cells, shape)
        return TeacherOutput(*nll_per_cell(chosen, _targets(known[wanted]), cells, shape), log_probs)

    def _allowed(self, slot_field: Tensor, images: int) -> Tensor:
        """Who sees whom: bool (B, images + slots, known + images + slots)."""
        seen_by = torch.cat([slot_field.new_full((len(slot_field), images), -1), slot_field], 1)
        known = (self._owners == -1) | (self._owners == seen_by[..., None])
        now = torch.ones(seen_by.shape[1], seen_by.shape[1], dtype=torch.bool).tril()
        now[images:, images:] = torch.eye(slot_field.shape[1], dtype=torch.bool)
        return torch.cat([known, now.expand(len(slot_field), -1, -1)], 2)
