"""Slot layouts: after schema and image, each asked field is asked for itself, in a branch or in one position."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from vivid_monai.errors import VividError
from vivid_monai.networks.language import KeysValues, LanguageModel, additive
from vivid_monai.networks.teacher.base import Teacher, TeacherOutput, is_answered, nll_per_cell
from vivid_monai.networks.teacher.text import Answers, read_answers, schema_text, slot_pieces
from vivid_monai.ums.states import NULL, STATES

Ids = Sequence[int]


class Query(NamedTuple):
    """A position whose logits are wanted: token `offset` of branch `branch` of row `row`."""

    row: int
    branch: int
    offset: int


def branch_logits(
    lm: LanguageModel,
    context: Tensor,
    branches: Sequence[Sequence[Ids]],
    queries: Sequence[Query],
    *,
    past: KeysValues | None = None,
    words: Tensor | None = None,
) -> Tensor:
    """Logits float32 (len(queries), vocabulary) of branches after a context.

    Args:
        lm: the language model.
        context: (B, C, embed_dim) embeddings, C ≥ 1, read causally.
        branches: per row its branches' token ids; rows may differ in number and length.
        queries: where logits are wanted.
        past: keys and values of a text before the context, shared by all rows.
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
        cells = [(token, number, at) for number, ids in enumerate(texts, 1) for at, token in enumerate(ids)]
        if cells:
            filled[row, :used] = torch.tensor(cells)
        starts.append(list(accumulate(map(len, texts), initial=0)))
    ids, number, offset = filled.to(context.device, non_blocking=True).unbind(-1)

    segment = torch.cat([number.new_zeros(batch, length), number], 1)
    position = torch.cat([torch.arange(length, device=context.device).expand(batch, -1), length + offset], 1) + before
    earlier = torch.ones(length + width, length + width, dtype=torch.bool, device=context.device).tril()
    # Padding sees the context, so that no row of the mask is empty, and is seen by nothing but padding.
    allowed = earlier & ((segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None]))
    allowed = torch.cat([allowed.new_ones(batch, length + width, before), allowed], 2)

    places = [(query.row, length + starts[query.row][query.branch] + query.offset) for query in queries]
    rows, columns = (
        torch.tensor(places, dtype=torch.int64).reshape(-1, 2).to(context.device, non_blocking=True).unbind(1)
    )
    return lm.logits(
        torch.cat([context, lm.embed(ids)], 1),
        additive(allowed[:, None], lm.dtype),
        position,
        (rows, columns),
        past,
        words=words,
    )


class SharedText:
    """Keys and values of a text that precedes every sequence, computed once for as long as they stay right.

    They are computed anew where the LM has moved or changed its type, under another autocast dtype, and, as long as
    adapters are trained, at every call.
    """

    def __init__(self, lm: LanguageModel, ids: Sequence[int], **places: Tensor) -> None:
        """Arguments as of `LanguageModel.keys_values`, on the CPU."""
        self.lm, self.ids, self._places = lm, list(ids), places
        self._known: dict[tuple[int, torch.dtype | None], KeysValues] = {}

    def __call__(self) -> KeysValues:
        """The keys and values, on the LM's device."""
        device = self.lm.device
        kind = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        key = (self.lm.moves, kind)
        if key in self._known and not self.lm.trainable:
            return self._known[key]
        computed = self.lm.keys_values(
            self.ids, **{name: place.to(device, non_blocking=True) for name, place in self._places.items()}
        )
        if not self.lm.trainable:
            self._known = {old: value for old, value in self._known.items() if old[0] == self.lm.moves}
            self._known[key] = computed
        return computed


class SlotTeacher(Teacher):
    """Asks a frozen LM for the state of each asked field, every field for itself.

    The sequence is [BOS] schema text, image embeddings, and for each asked field a branch `\\nEdema: present` that sees
    the schema, the image and itself, and starts at the same position as all others. Loss is on the state word alone.
    F' = F.

    Args:
        lm: the language model.
        fields: names of the fields, in label-space order.
        choose_from: "vocabulary": the loss is that of the LM, over every token of the state word; or "states": that of
            the choice among the states' first tokens, all others set aside, so that the LM's head has three rows.
    """

    def __init__(self, lm: LanguageModel, fields: Sequence[str], *, choose_from: str = "vocabulary") -> None:
        super().__init__(fields, lm.embed_dim, embed_scale=lm.embed_scale)
        if choose_from not in ("vocabulary", "states"):
            raise VividError(f"choose_from must be vocabulary or states, got {choose_from!r}")
        self.lm = lm
        self.choose_from = choose_from
        self.answers = [
            read_answers(lm.tokenizer, {state: slot_pieces(field, state) for state in STATES}) for field in self.fields
        ]
        if choose_from == "states":
            self.answers = [Answers(prefix, tuple((word[0],) for word in words)) for prefix, words in self.answers]
        self._firsts = [[word[0] for word in words] for _, words in self.answers]
        self._words = sorted({token for row in self._firsts for token in row})
        self._columns = [[self._words.index(token) for token in row] for row in self._firsts]
        self.schema_ids = schema_ids(lm, self.fields)
        self._schema = SharedText(lm, self.schema_ids)

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        known, wanted = self.questions(embeddings, states, asked)
        branches: list[list[Sequence[int]]] = []
        queries: list[Query] = []
        targets: list[int] = []
        cells: list[tuple[int, int]] = []
        first: list[int] = []
        for row, (codes, fields) in enumerate(zip(known.tolist(), wanted.tolist(), strict=True)):
            texts: list[Sequence[int]] = []
            for field, (code, is_asked) in enumerate(zip(codes, fields, strict=True)):
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
        device = embeddings.device
        words = torch.tensor(self._words, device=device) if few else None
        logits = branch_logits(self.lm, context, branches, queries, past=past, words=words)
        log_probs = logits.new_full((*shape, len(STATES)), torch.nan)
        if not first:
            return TeacherOutput(*nll_per_cell(logits, targets, cells, shape), log_probs)
        places = torch.tensor([cells[at] for at in first])
        starts = torch.tensor(self._columns if few else self._firsts)[places[:, 1]].to(device, non_blocking=True)
        chosen = logits[torch.tensor(first, device=device)].gather(1, starts)
        log_probs[places.to(device, non_blocking=True).unbind(1)] = chosen.detach().log_softmax(1)
        if few:
            codes = known[places.unbind(1)]
            return TeacherOutput(*nll_per_cell(chosen, _targets(codes), places, shape), log_probs)
        return TeacherOutput(*nll_per_cell(logits, targets, cells, shape), log_probs)

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        self.check_questions(states, asked)
        lengths = torch.tensor([[len(word) for word in answer.words] for answer in self.answers], device=states.device)
        tokens = lengths.expand(len(states), -1, -1).gather(2, states.clamp(min=0)[..., None])[..., 0]
        return (tokens * is_answered(states, asked)).sum(1)

    def _context(self, embeddings: Tensor) -> tuple[Tensor, KeysValues]:
        """What precedes the slots: embeddings to compute, and what is already computed."""
        return embeddings.to(self.lm.dtype), self._schema()


def schema_ids(lm: LanguageModel, fields: Sequence[str]) -> list[int]:
    """Token ids of the schema's text, BOS first where the model expects it."""
    return lm.bos + lm.tokenizer(schema_text(fields), add_special_tokens=False)["input_ids"]


def _targets(codes: Tensor) -> Tensor:
    return codes.masked_fill(codes == NULL, -100)


class ShortSlotTeacher(Teacher):
    """Asks a frozen LM for the state of each asked field, with one position for each.

    The texts are those of `SlotTeacher` in another order. For each field the
    LM reads [BOS] schema text, `\\nEdema`, image embeddings, `:`, and chooses among the first tokens of the states.
    What precedes the image is the same for all images: its keys and values are computed once. An image costs its
    embeddings, which see the schema alone and are shared by its fields, and one position for each field, which sees
    the schema, its own name, the image and itself. F' = F.

    Args:
        lm: the language model.
        fields: names of the fields, in label-space order.
    """

    def __init__(self, lm: LanguageModel, fields: Sequence[str]) -> None:
        super().__init__(fields, lm.embed_dim, embed_scale=lm.embed_scale)
        self.lm = lm
        answers = [
            read_answers(lm.tokenizer, {state: slot_pieces(field, state) for state in STATES}) for field in self.fields
        ]
        schema = schema_ids(lm, self.fields)
        names = [answer.prefix[:-1] for answer in answers]
        # Every name ends right before the image, so that all fields see it at the same positions.
        self._start = len(schema) + max(map(len, names))
        owners = [-1] * len(schema) + [field for field, name in enumerate(names) for _ in name]
        positions = [*range(len(schema)), *(self._start - len(n) + i for n in names for i in range(len(n)))]
        self._owners = torch.tensor(owners)
        # Each name sees the schema and itself.
        allowed = (self._owners == -1) | (self._owners == self._owners[:, None])
        self._before = SharedText(
            lm,
            schema + [token for name in names for token in name],
            positions=torch.tensor(positions),
            allowed=allowed.tril(),
        )
        self._last = torch.tensor([answer.prefix[-1] for answer in answers])
        firsts = [[word[0] for word in answer.words] for answer in answers]
        words = sorted({token for row in firsts for token in row})
        self._words = torch.tensor(words)
        self._columns = torch.tensor([[words.index(token) for token in row] for row in firsts])

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        # Where to look is worked out on the CPU; nothing below waits for the GPU.
        known, wanted = self.questions(embeddings, states, asked)
        device, (batch, images) = embeddings.device, embeddings.shape[:2]
        rows, fields = wanted.nonzero(as_tuple=True)
        slots = (wanted.cumsum(1) - 1)[rows, fields]
        width = int(wanted.sum(1).max())
        self.lm.check_length(self._start + images + 1, masked=len(self._owners) + images + width)

        slot_field = torch.full((batch, width), -2)  # −2: filled up, sees the schema alone
        slot_field[rows, slots] = fields
        last = self.lm.embed(self._last[slot_field.clamp(min=0)].to(device, non_blocking=True))
        context = torch.cat([embeddings.to(self.lm.dtype), last], 1)
        position = torch.cat([torch.arange(images), torch.full((width,), images)]) + self._start
        mask = additive(self._allowed(slot_field, images)[:, None].to(device, non_blocking=True), self.lm.dtype)
        at = rows.to(device, non_blocking=True), (images + slots).to(device, non_blocking=True)
        logits = self.lm.logits(
            context,
            mask,
            position.to(device, non_blocking=True).expand(batch, -1),
            at,
            self._before(),
            words=self._words.to(device, non_blocking=True),
        )
        chosen = logits.gather(1, self._columns[fields].to(device, non_blocking=True))
        log_probs = logits.new_full((*asked.shape, len(STATES)), torch.nan)
        cells = torch.stack([rows, fields], 1)
        log_probs[cells.to(device, non_blocking=True).unbind(1)] = chosen.detach().log_softmax(1)
        nll, count = nll_per_cell(chosen, _targets(known[rows, fields]), cells, tuple(asked.shape))
        return TeacherOutput(nll, count, log_probs)

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        self.check_questions(states, asked)
        return is_answered(states, asked).sum(1)

    def _allowed(self, slot_field: Tensor, images: int) -> Tensor:
        """Who sees whom: bool (B, images + slots, known + images + slots)."""
        seen_by = torch.cat([slot_field.new_full((len(slot_field), images), -1), slot_field], 1)
        known = (self._owners == -1) | (self._owners == seen_by[..., None])
        now = torch.ones(seen_by.shape[1], seen_by.shape[1], dtype=torch.bool).tril()
        now[images:, images:] = torch.eye(slot_field.shape[1], dtype=torch.bool)
        return torch.cat([known, now.expand(len(slot_field), -1, -1)], 2)
