"""The teacher without an LM: a small classifier of states."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vivid_monai.networks.teacher.base import Teacher, TeacherOutput
from vivid_monai.ums.states import NULL, STATES


class StateClassifier(Teacher):
    """Trained with the ViT: every field attends to the image embeddings with a query of its own and chooses a state.

    Field f reads the mean of the embeddings z weighted by softmax_k(q_f · z_k / √embed_dim) and applies its own linear
    layer to 3 logits. All q_f start at 0, a plain mean. One "token" per field; `F' = F`.

    Args:
        fields: names of the fields, in label-space order.
        embed_dim: width of the image embeddings.
    """

    def __init__(self, fields: Sequence[str], embed_dim: int) -> None:
        super().__init__(fields, embed_dim)
        self.query = nn.Parameter(torch.zeros(len(self.fields), embed_dim))
        self.weight = nn.Parameter(torch.empty(len(self.fields), len(STATES), embed_dim))
        self.bias = nn.Parameter(torch.zeros(len(self.fields), len(STATES)))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        self.check_inputs(embeddings, states, asked)
        scores = torch.einsum("fd,bkd->bfk", self.query, embeddings) / self.embed_dim**0.5
        pooled = torch.einsum("bfk,bkd->bfd", scores.softmax(-1), embeddings)
        logits = torch.einsum("bfd,fsd->bfs", pooled, self.weight) + self.bias
        log_probs = logits.float().log_softmax(-1)
        answered = asked & (states != NULL)
        nll = -log_probs.gather(2, states.clamp(min=0)[..., None])[..., 0]
        return TeacherOutput(
            nll.masked_fill(~answered, 0.0),
            answered.long(),
            log_probs.detach().masked_fill(~asked[..., None], torch.nan),
        )

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        self.check_questions(states, asked)
        return (asked & (states != NULL)).sum(1)
