"""Which parameters an optimiser trains, how fast, and which of them decay."""

from typing import Any

from torch import nn

from vivid_monai.errors import VividError
from vivid_monai.networks.pretrainer import Pretrainer

# Vectors that stand for something, not maps between spaces: tokens, positions, queries.
UNDECAYED = ("cls_token", "position_embeddings", "queries", "query")


def parameter_groups(
    pretrainer: Pretrainer, *, lr_vit: float, lr_projector: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser such as AdamW.

    Weights decay; biases, norms, tokens, position embeddings and queries do not. Frozen parameters are left out.

    Args:
        pretrainer: what is trained.
        lr_vit: peak learning rate of the ViT.
        lr_projector: peak learning rate of everything else: SPD, projector, and a teacher that is trained.
        weight_decay: of the weights.

    Returns:
        Up to four groups, {"name", "params", "lr", "weight_decay"}, always in this order: "vit", "vit, no decay",
        "projector", "projector, no decay"; none is empty.

    Raises:
        VividError: a rate or the decay is negative, or nothing can be trained.
    """
    if min(lr_vit, lr_projector, weight_decay) < 0:
        raise VividError(f"{lr_vit=}, {lr_projector=} and {weight_decay=} must not be negative")
    groups: list[dict[str, Any]] = []
    for part, lr in (("vit", lr_vit), ("projector", lr_projector)):
        for suffix, decay in (("", weight_decay), (", no decay", 0.0)):
            groups.append({"name": f"{part}{suffix}", "params": [], "lr": lr, "weight_decay": decay})
    for name, parameter in pretrainer.named_parameters():
        if parameter.requires_grad:
            undecayed = _is_undecayed(name.rpartition(".")[2], parameter)
            groups[2 * (not name.startswith("encoder.")) + undecayed]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise VividError("every parameter is frozen: nothing to train")
    return groups


def _is_undecayed(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim <= 1 or name.endswith("bias") or name in UNDECAYED
