"""Teachers that run no language model in training: a state classifier, and phrases an LM has read once before."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vivid_monai.networks.language import LanguageModel
from vivid_monai.networks.teacher.base import Teacher, TeacherOutput, is_answered
from vivid_monai.networks.teacher.slots import schema_ids
from vivid_monai.networks.teacher.text import slot_pieces
from vivid_monai.ums.states import STATES


class ClassifyingTeacher(Teacher):
    """Logits of the states straight from the image embeddings; one "token" per field, `F' = F`."""

    @abstractmethod
    def logits(self, embeddings: Tensor) -> Tensor:
        """(B, F, 3) of image embeddings (B, K, embed_dim)."""

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        self.questions(embeddings, states, asked)
        log_probs = self.logits(embeddings).float().log_softmax(-1)
        answered = is_answered(states, asked)
        nll = -log_probs.gather(2, states.clamp(min=0)[..., None])[..., 0]
        return TeacherOutput(
            nll.masked_fill(~answered, 0.0),
            answered.long(),
            log_probs.detach().masked_fill(~asked[..., None], torch.nan),
        )


class StateClassifier(ClassifyingTeacher):
    """Trained with the ViT: every field attends to the image embeddings with a query of its own and chooses a state.

    Field f reads the mean of the embeddings z weighted by softmax_k(q_f · z_k / √embed_dim) and applies its own linear
    layer to 3 logits. All q_f start at 0, a plain mean.
    """

    def __init__(self, fields: Sequence[str], embed_dim: int) -> None:
        super().__init__(fields, embed_dim)
        self.query = nn.Parameter(torch.zeros(len(self.fields), embed_dim))
        self.weight = nn.Parameter(torch.empty(len(self.fields), len(STATES), embed_dim))
        self.bias = nn.Parameter(torch.zeros(len(self.fields), len(STATES)))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def logits(self, embeddings: Tensor) -> Tensor:
        scores = torch.einsum("fd,bkd->bfk", self.query, embeddings) / self.embed_dim**0.5
        pooled = torch.einsum("bfk,bkd->bfd", scores.softmax(-1), embeddings)
        return torch.einsum("bfd,fsd->bfs", pooled, self.weight) + self.bias


class PhraseTeacher(ClassifyingTeacher):
    """Matches image embeddings with what a frozen LM makes of "Edema: present" and every other answer.

    An answer's phrase is the mean of the LM's last hidden states over the tokens of its slot, read after the schema as
    in :class:`~vivid_monai.networks.teacher.slots.SlotTeacher`, without an image. A field's name is the mean of its
    phrases less that of all fields; a state is its phrase less the mean of the field's. All of them are scaled to
    length 1, as an LM's hidden states have most of their length in common. With the image embeddings z, also scaled:

        a = softmax_k(α · nameᵀ z_k),   logit(state) = τ · stateᵀ Σ_k a_k z_k + bias.

    α, τ and the bias of every answer are trained, nothing else is.

    Args:
        lm: the language model; not kept.
        fields: names of the fields, in label-space order.
    """

    names: Tensor
    states: Tensor

    def __init__(self, lm: LanguageModel, fields: Sequence[str]) -> None:
        super().__init__(fields, lm.embed_dim)
        phrases = torch.stack(
            [torch.stack([_phrase(lm, fields, field, state) for state in STATES]) for field in fields]
        )
        names = phrases.mean(1)
        # No part of a checkpoint: the LM gives them again.
        self.register_buffer("names", F.normalize(names - names.mean(0), dim=-1), persistent=False)
        self.register_buffer("states", F.normalize(phrases - names[:, None], dim=-1), persistent=False)
        self.log_attention = nn.Parameter(torch.tensor(8.0).log())
        self.log_scale = nn.Parameter(torch.tensor(8.0).log())
        self.bias = nn.Parameter(torch.zeros(len(self.fields), len(STATES)))

    def logits(self, embeddings: Tensor) -> Tensor:
        z = F.normalize(embeddings.float(), dim=-1)
        attention = (self.log_attention.exp() * torch.einsum("fd,bkd->bfk", self.names.float(), z)).softmax(-1)
        # Weights first: of (B, F, D) nothing has to be kept.
        matches = torch.einsum("fsd,bkd->bfks", self.states.float(), z)
        return self.log_scale.exp() * torch.einsum("bfk,bfks->bfs", attention, matches) + self.bias


def _phrase(lm: LanguageModel, fields: Sequence[str], field: str, state: str) -> Tensor:
    """Mean hidden state (D,) of one answer."""
    schema = schema_ids(lm, fields)
    text = "".join(piece.text for piece in slot_pieces(field, state))
    slot = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    return lm.read([*schema, *slot])[len(schema) :].mean(0)
