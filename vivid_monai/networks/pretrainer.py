"""A backbone with its objectives: one forward of training."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from ignite.metrics import Metric
from torch import Tensor, nn
from torch.nn import functional as F

from vivid_monai.errors import VividError
from vivid_monai.networks.modules import misfits, some
from vivid_monai.networks.objectives import Objective

T = TypeVar("T")


class Pretrainer(nn.Module):
    """A backbone and the objectives that train it, in one module that `DistributedDataParallel` can wrap.

    Args:
        encoder: the backbone, images (B, C, *spatial) → tokens (B, T, embed_dim).
        objectives: by name. Of several, the terms and metrics are called ``name/term``; of one, ``term``.

    Raises:
        VividError: no objective, or one that reads tokens of another width.
    """

    def __init__(self, encoder: Any, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        if not objectives:
            raise VividError("a pretrainer needs an objective: nothing would be trained")
        for name, objective in objectives.items():
            if objective.dim != encoder.embed_dim:
                raise VividError(
                    f"the objective {name!r} reads tokens of width {objective.dim}, which must be "
                    f"{encoder.embed_dim}, the width of the encoder"
                )
        self.encoder = encoder
        self.objectives = nn.ModuleDict(objectives)
        self.register_state_dict_post_hook(_each_once)
        self._prefix = {name: f"{name}/" if len(objectives) > 1 else "" for name in objectives}
        self.train()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Sum of each term, float32 (); of all processes together, the sum over them counts every image once.

        Args:
            batch: "image" float (B, C, *spatial), normalised as the encoder's preprocessing says, and the targets.
        """
        tokens = self.encoder(batch["image"])
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        everywhere = gather(tokens, batch) if self.whole_batch and world_size > 1 else (tokens, batch)

        def sums(_: str, objective: Objective) -> dict[str, Tensor]:
            if not objective.whole_batch:
                return objective(tokens, batch)
            # What compares all images has the whole sum in every process.
            return {term: value / world_size for term, value in objective(*everywhere).items()}

        return self._terms(sums)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Count of each term in this process's batch, without a forward."""
        return self._terms(lambda _, objective: objective.counts(batch))

    def loss(self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> Tensor:
        """Σ weight · sum / count over the terms: scalar."""
        return sum(weight * sums[term] / counts[term] for term, weight in self.weights.items())  # type: ignore[return-value]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term."""
        return self._terms(lambda _, objective: objective.weights)

    @property
    def whole_batch(self) -> bool:
        """Whether a term compares the images of a step with each other, which micro-batches would not allow."""
        return any(objective.whole_batch for objective in self.objectives.values())

    def predict(self, batch: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        """What each objective predicts for a batch, by the objective's name."""
        tokens, named = self.encoder(batch["image"]), cast(Mapping[str, Objective], self.objectives)
        return {name: objective.predict(tokens, batch) for name, objective in named.items()}

    def metrics(self) -> dict[str, Metric]:
        """Metrics of a validation by :class:`~vivid_monai.engines.step.ValidationStep`, the key metric first."""
        return self._terms(lambda name, objective: objective.metrics(lambda output: output[name]))

    def train(self, mode: bool = True) -> "Pretrainer":
        """As of any module, but what is frozen of the encoder stays in evaluation mode: its batch norms keep theirs."""
        super().train(mode)
        for module in self.encoder.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the encoder and the objectives by `torch.compile`, in place: parameters keep their names."""
        for part in (self.encoder, *self.objectives.values()):
            part.compile(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict, all of it and nothing else.

        Raises:
            VividError: a tensor is missing, unknown or of another shape; nothing is loaded then.
        """
        # Until version 0.1 SPD, projector and teacher were parts of the pretrainer itself.
        early = ("spd.", "projector.", "teacher.")
        state = {f"objectives.states.{n}" if n.startswith(early) else n: tensor for n, tensor in state_dict.items()}
        if wrong := misfits(state, self.state_dict()):
            raise VividError(f"the checkpoint is of another pretrainer: {some(wrong, sep='; ')}")
        return super().load_state_dict(state, *args, **{**kwargs, "strict": False})  # further names of what is shared

    def _terms(self, of: Callable[[str, Any], Mapping[str, T]]) -> dict[str, T]:
        """What `of` says of the terms of each objective (its name and itself), by their names here."""
        told = {name: of(name, objective) for name, objective in self.objectives.items()}
        return {self._prefix[name] + term: value for name, terms in told.items() for term, value in terms.items()}


def _each_once(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Keep what several objectives share, such as SPD, under its first name alone."""
    first = {name for name, _ in module.named_parameters()}
    for name, _ in module.named_parameters(remove_duplicate=False):
        if name not in first:
            state.pop(prefix + name, None)


def gather(tokens: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Tokens and targets of all processes, rank after rank; the tokens' gradient goes back to where they come from.

    Batches may differ in size, as images that cannot be read are left out. The images themselves stay.
    """
    world_size = dist.get_world_size()
    lists = {key: value for key, value in batch.items() if not isinstance(value, Tensor)}
    everyone: list[Any] = [None] * world_size
    dist.all_gather_object(everyone, (len(tokens), lists))
    sizes = [size for size, _ in everyone]

    def together(one: Tensor) -> Tensor:
        plain = one.byte() if one.dtype == torch.bool else one  # gloo gathers no bool
        padded = F.pad(plain, (0, 0) * (one.ndim - 1) + (0, max(sizes) - len(one)))
        parts = _Gather.apply(padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(one.dtype)

    tensors = {key: together(value) for key, value in batch.items() if isinstance(value, Tensor) and key != "image"}
    return together(tokens), tensors | {key: [one for _, own in everyone for one in own[key]] for key in lists}


class _Gather(torch.autograd.Function):
    """Tensor of this process → (processes, …) of all; the gradient is summed over them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # type: ignore[override]
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]
