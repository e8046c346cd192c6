"""One forward of pretraining: image → tokens → embeddings → what the teacher says of them."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from vivid_monai.errors import VividError
from vivid_monai.networks.spd import SPD, Projector
from vivid_monai.networks.teacher.base import Teacher
from vivid_monai.networks.vit import ViT


class Pretrainer(nn.Module):
    """ViT, SPD, projector and teacher in a row (VIVID-Med, arXiv:2603.09109).

    All that training needs comes out of `forward`, so that the whole can be wrapped in `DistributedDataParallel`.
    A frozen teacher stays in evaluation mode, and out of the checkpoint.
    """

    def __init__(
        self, encoder: ViT, spd: SPD, projector: Projector, teacher: Teacher, *, pass_patches: bool = False
    ) -> None:
        """
        Args:
            encoder, spd, projector, teacher: the parts, each as wide as its neighbour.
            pass_patches: give the teacher all ViT tokens after SPD's embeddings, through the same projector, as the
                published layout does.

        Raises:
            VividError: two neighbours differ in width.
        """
        super().__init__()
        for name, width, wanted in (
            ("spd.dim", spd.dim, encoder.embed_dim),
            ("projector.dim", projector.dim, encoder.embed_dim),
            ("projector.out_dim", projector.out_dim, teacher.embed_dim),
        ):
            if width != wanted:
                raise VividError(f"{name}={width} must be {wanted}, the width of its neighbour")
        self.encoder = encoder
        self.spd = spd
        self.projector = projector
        self.teacher = teacher
        self.pass_patches = pass_patches
        self.train()

    def forward(self, image: Tensor, states: Tensor, asked: Tensor) -> dict[str, Tensor]:
        """Ask the teacher about a batch.

        Args:
            image: float (B, C, H, W), normalised as the encoder's preprocessing says.
            states: int64 (B, F), codes of `vivid_monai.ums.states`, -1 where not answerable.
            asked: bool (B, F).

        Returns:
            "nll" (B, F'), "count" (B, F') and "log_probs" (B, F, 3) of `TeacherOutput`; "penalty" (B,) of `SPDOutput`.
        """
        tokens = self.encoder(image)
        spd = self.spd(tokens)
        embeddings = torch.cat((spd.embeddings, tokens), dim=1) if self.pass_patches else spd.embeddings
        answer = self.teacher(self.projector(embeddings), states, asked)
        return {"nll": answer.nll, "count": answer.count, "log_probs": answer.log_probs, "penalty": spd.penalty}

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        """Supervised tokens per image, int64 (B,), without a forward."""
        return self.teacher.count(states, asked)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of everything but the parts of the teacher that are frozen; these stay in evaluation mode."""
        super().train(mode)
        for module in self.teacher.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile ViT, SPD and projector by `torch.compile`, in place: parameters keep their names.

        The teacher is left as it is: its sequences are of another length with every batch.
        """
        for part in (self.encoder, self.spd, self.projector):
            part.compile(*args, **kwargs)

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """The state dict without the teacher's frozen parameters; the tensors are the live ones."""
        named = self.teacher.named_parameters(remove_duplicate=False)
        frozen = {f"teacher.{name}" for name, parameter in named if not parameter.requires_grad}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}

    def load_trainable_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trainable_state_dict` gave, all of it and nothing else.

        Raises:
            VividError: a tensor is missing, unknown or of another shape; nothing is loaded then.
        """
        own = self.trainable_state_dict()
        wrong = [f"{name} is missing" for name in own if name not in state]
        wrong += [f"{name} is unknown" for name in state if name not in own]
        wrong += [
            f"{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ]
        if wrong:
            more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise VividError(f"the checkpoint is of another pretrainer: {'; '.join(wrong[:4])}{more}")
        self.load_state_dict(self.state_dict() | dict(state))
