"""The interface of teachers: image embeddings, asked fields and true states in, a loss per field out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vivid_monai.errors import VividError
from vivid_monai.networks.language import LanguageModel
from vivid_monai.ums.states import NULL, STATES


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says about one batch of B images and F fields.

    Attributes:
        nll: float32 (B, F'), the sum of the token NLL in nats over each field's supervised tokens, with the graph to
            the embeddings. F' = F, or F + 1 where the last column holds tokens of no field (`PublishedTeacher`).
        count: int64 (B, F'), how many tokens that is. Fields not asked or not answerable: exactly 0 in both.
        log_probs: float32 (B, F, 3), log-probabilities of `vivid_monai.ums.states.STATES` for each asked field, without
            graph; NaN where a field is not asked. They depend on no true state. `PublishedTeacher`: in eval mode only.

    The training loss is `nll.sum() / count.sum()`, plus λ times SPD's penalty.
    """

    nll: Tensor
    count: Tensor
    log_probs: Tensor


class Teacher(nn.Module, ABC):
    """The interface of all teachers.

    What a teacher registers is exactly what it trains.

    Args:
        fields: names of the fields, in label-space order.
        embed_dim: width of the image embeddings the teacher takes.
        embed_scale: root mean square of the embeddings it is used to; a projector starts there.
    """

    def __init__(self, fields: Sequence[str], embed_dim: int, *, embed_scale: float = 1.0) -> None:
        super().__init__()
        if isinstance(fields, str) or not fields:
            raise VividError(f"a teacher needs a list of field names, got {fields!r}")
        if repeated := sorted({field for field in fields if list(fields).count(field) > 1}):
            raise VividError(f"each field can be asked once only; given more than once: {', '.join(repeated)}")
        self.fields: tuple[str, ...] = tuple(fields)
        self.embed_dim = embed_dim
        self.embed_scale = embed_scale

    @abstractmethod
    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        """Score the true states of the asked fields.

        Args:
            embeddings: floating (B, K, embed_dim), K ≥ 1 embeddings of each image.
            states: int64 (B, F), codes of `STATES` or `NULL` (not answerable).
            asked: bool (B, F). A field carries loss where it is asked and its state is not `NULL`.

        Raises:
            VividError: on another shape or dtype, a state out of range, or a sequence too long for the model.
        """

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        """Supervised tokens per image, int64 (B,), equal to `forward(...).count.sum(1)`, without a forward.

        Here: one for each field that is asked and has a state.
        """
        self.check_questions(states, asked)
        return is_answered(states, asked).sum(1)

    def check_questions(self, states: Tensor, asked: Tensor) -> None:
        """Raise VividError on another shape or dtype, or, where `states` is on the CPU, a state out of range.

        On a GPU the range is checked in `forward` alone: reading it back waits for the GPU.
        """
        shape = (len(states), len(self.fields)) if states.ndim else None
        for name, tensor, dtype in (("states", states, torch.int64), ("asked", asked, torch.bool)):
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise VividError(
                    f"{name} must be {dtype} of shape (B, {len(self.fields)}), one column per field; "
                    f"got {tensor.dtype} {tuple(tensor.shape)}"
                )
        if states.device.type == "cpu" and states.numel() and not NULL <= states.min() <= states.max() < len(STATES):
            raise VividError(f"states must be within {NULL}…{len(STATES) - 1}; got {states.min()}…{states.max()}")

    def questions(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """States and asked, checked, on the CPU: the one place of a forward that waits for the GPU."""
        self.check_questions(states, asked)
        shape = tuple(embeddings.shape)
        if len(shape) != 3 or not embeddings.is_floating_point() or shape[1] < 1 or shape[2] != self.embed_dim:
            raise VividError(
                f"embeddings must be floating of shape (B, K ≥ 1, {self.embed_dim}), the width of this teacher; "
                f"got {embeddings.dtype} {shape}"
            )
        if shape[0] != len(states) or shape[0] < 1:
            raise VividError(f"{shape[0]} images but states for {len(states)}; both must be the same, at least 1")
        states, wanted = torch.stack([states, asked.to(states.dtype)]).cpu().unbind()
        self.check_questions(states, wanted.bool())
        return states, wanted.bool()


class LMTeacher(Teacher):
    """Asks a language model.

    Args:
        lm: the language model. A frozen one is in neither `parameters()` nor `state_dict()`, but `.to()` moves it.
        fields: names of the fields, in label-space order.
    """

    def __init__(self, lm: LanguageModel, fields: Sequence[str]) -> None:
        super().__init__(fields, lm.embed_dim, embed_scale=lm.embed_scale)
        self.lm = lm


def is_answered(states: Tensor, asked: Tensor) -> Tensor:
    """Which fields carry loss, bool (B, F): asked, and with a known state."""
    return asked & (states != NULL)


def choose(logits: Tensor, words: Tensor, cells: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What N questions make of the states.

    Args:
        logits: float32 (N, vocabulary).
        words: int64 (F, 3), for each field the columns of `logits` in which its states begin.
        cells: int64 (N, 2), for each question its image and its field.
        shape: (B, F).

    Returns:
        Logits (N, 3) of the states, and log-probabilities (B, F, 3) without graph, NaN where nothing was asked.
    """
    chosen = logits.gather(1, words[cells[:, 1]].to(logits.device, non_blocking=True))
    log_probs = logits.new_full((*shape, len(STATES)), torch.nan)
    log_probs[cells.to(logits.device, non_blocking=True).unbind(1)] = chosen.detach().log_softmax(1)
    return chosen, log_probs


def nll_per_cell(
    logits: Tensor, targets: Tensor | Sequence[int], cells: Tensor | Sequence[tuple[int, int]], shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Sum the NLL of N tokens into a table.

    Args:
        logits: float32 (N, vocabulary).
        targets: int64 (N,) columns of `logits`; −100 is not scored.
        cells: int64 (N, 2), for each token its row and column in the table.
        shape: of the table, nll float32 and count int64, that is returned.
    """
    target = torch.as_tensor(targets, dtype=torch.int64).to(logits.device, non_blocking=True)
    place = torch.as_tensor(cells, dtype=torch.int64).to(logits.device, non_blocking=True).reshape(-1, 2).unbind(1)
    token_nll = nn.functional.cross_entropy(logits, target, reduction="none", ignore_index=-100)
    nll = logits.new_zeros(shape).index_put(place, token_nll, accumulate=True)
    count = target.new_zeros(shape).index_put(place, (target != -100).long(), accumulate=True)
    return nll, count
