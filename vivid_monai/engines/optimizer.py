"""What an optimiser trains and at which rate; AdamW, and Muon for the matrices inside a network."""

import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from vivid_monai.errors import VividError
from vivid_monai.networks.pretrainer import Pretrainer

# Vectors that stand for something, not maps between spaces: tokens, positions, queries.
UNDECAYED = ("cls_token", "position_embeddings", "queries", "query")
# Maps from hidden units to hidden units; not those that read pixels or answer.
HIDDEN = re.compile(r"encoder\.blocks\.|.*\.(spd|projector)\.").match


def build_optimizer(
    pretrainer: Pretrainer,
    kind: str = "adamw",
    *,
    lr_vit: float,
    lr_projector: float,
    weight_decay: float,
    lr_muon: float = 0.02,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """The optimiser of a pretraining, with :func:`parameter_groups`.

    Args:
        kind: "adamw", or "muon": :class:`Muon` for the matrices of the ViT's blocks, SPD and the projector (peak
            learning rate `lr_muon`), AdamW for all else.

    Raises:
        VividError: an unknown kind, "muon" where there is no such matrix, or what `parameter_groups` refuses.
    """
    if kind not in ("adamw", "muon"):
        raise VividError(f"optimizer={kind!r} is unknown: choose adamw or muon")
    groups = parameter_groups(
        pretrainer,
        lr_vit=lr_vit,
        lr_projector=lr_projector,
        weight_decay=weight_decay,
        lr_muon=lr_muon if kind == "muon" else None,
        layer_decay=layer_decay,
    )
    return (Muon if kind == "muon" else torch.optim.AdamW)(groups, lr=lr_vit)


def parameter_groups(
    pretrainer: Pretrainer,
    *,
    lr_vit: float,
    lr_projector: float,
    weight_decay: float,
    lr_muon: float | None = None,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser such as AdamW.

    Weights decay; biases, norms, tokens, position embeddings and queries do not. Frozen parameters are left out.

    Args:
        pretrainer: what is trained.
        lr_vit: peak learning rate of the encoder.
        lr_projector: peak learning rate of everything else: SPD, projector, heads, and a teacher that is trained.
        weight_decay: of the weights.
        lr_muon: peak learning rate of hidden matrices, which then have groups of their own, with ``"muon": True``.
        layer_decay: factor in (0, 1] on the encoder's rate from each block to the one before it (Clark et al. 2020,
            arXiv:2003.10555; timm's `layer_decay`); what follows the last block has the whole rate. See `layers`.

    Returns:
        Groups {"name", "params", "lr", "weight_decay"}, none empty, always in the order "vit", "vit, no decay",
        "vit, muon", then the same of "projector"; with `layer_decay`, "vit, layer 0" and so on, from the pixels up.

    Raises:
        VividError: a rate or the decay is negative, `layer_decay` is out of its range or the encoder has no sequence
            of blocks, nothing can be trained, or nothing by Muon.
    """
    if min(lr_vit, lr_projector, weight_decay, lr_muon or 0) < 0:
        raise VividError(f"{lr_vit=}, {lr_projector=}, {lr_muon=} and {weight_decay=} must not be negative")
    if not 0 < layer_decay <= 1:
        raise VividError(f"{layer_decay=} must lie in (0, 1]")
    layer_of = layers(pretrainer.encoder) if layer_decay < 1 else {}
    last = max(layer_of.values(), default=0)
    groups: dict[tuple[bool, int, int], dict[str, Any]] = {}
    for name, parameter in pretrainer.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith("bias") or name.rpartition(".")[2] in UNDECAYED
        kind = 1 if plain else 2 if lr_muon is not None and HIDDEN(name) else 0
        vit, layer = name.startswith("encoder."), layer_of.get(name.removeprefix("encoder."), 0)
        lr = lr_muon if lr_muon is not None and kind == 2 else lr_vit if vit else lr_projector
        label = "projector" if not vit else "vit" if layer_decay == 1 else f"vit, layer {layer}"
        group = groups.setdefault(
            (not vit, layer, kind),
            {
                "name": label + ("", ", no decay", ", muon")[kind],
                "params": [],
                "lr": lr * layer_decay ** (last - layer) if vit else lr,
                "weight_decay": 0.0 if plain else weight_decay,
                **({"muon": True} if kind == 2 else {}),
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise VividError("every parameter is frozen: nothing to train")
    if lr_muon is not None and not any("muon" in group for group in groups.values()):
        raise VividError("optimizer='muon' is for a ViT, SPD or a projector: nothing of these is trained, take adamw")
    return [groups[key] for key in sorted(groups)]


def blocks(encoder: nn.Module) -> dict[str, nn.Module]:
    """The blocks that a network is a sequence of, by their names, from the pixels up.

    Of all siblings of one type whose names differ in a number alone ("blocks.0", "stages.1", "layer3", "denseblock4"),
    those that hold most of the parameters: the blocks of a ViT, the stages of a ResNet, DenseNet, Swin or ConvNeXt.

    Raises:
        VividError: there are no such siblings.
    """
    most, found = 0, {}
    for path, module in encoder.named_modules():
        alike: dict[Any, dict[str, nn.Module]] = defaultdict(dict)
        for name, child in module.named_children():
            if re.search(r"\d", name):
                alike[type(child), re.sub(r"\d+", "#", name)][f"{path}.{name}".lstrip(".")] = child
        for members in alike.values():
            size = sum(parameter.numel() for child in members.values() for parameter in child.parameters())
            if len(members) > 1 and size > most:
                most, found = size, members
    if not found:
        raise VividError(f"a {type(encoder).__name__} is no sequence of blocks: set layer_decay to 1, trained to all")
    return found


def layers(encoder: nn.Module) -> dict[str, int]:
    """Name of each parameter → its layer: 0 before the first of N blocks, 1 to N, and N + 1 after the last.

    What stands between two blocks, such as a DenseNet's transitions, is of the one before it.
    """
    names, layer, found = list(blocks(encoder)), 0, {}
    for name, _ in encoder.named_parameters():
        inside = next((i for i, block in enumerate(names, start=1) if name.startswith(f"{block}.")), None)
        if inside is None and layer == len(names):
            layer += 1
        layer = max(layer, inside or 0)
        found[name] = layer
    return found


class Muon(torch.optim.Optimizer):
    """AdamW, but in groups with ``"muon": True`` momentum that is made orthogonal.

    Jordan 2024, https://kellerjordan.github.io/posts/muon. Such a group's parameters are matrices (rows, columns), or
    stacks of them (…, rows, columns) of which each is a matrix by itself. It computes what `torch.optim.Muon` does, in
    float32 and for all matrices of a shape at once: a quarter of the time without bfloat16 in hardware.

    Args:
        params: parameters or groups.
        lr, weight_decay: of groups without their own. A step of Muon moves a matrix by about `lr` · √rows (2-norm).
        momentum: of Muon, Nesterov's.
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "muon": False})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient stay."""
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not group["muon"]:
                self._adamw(given, group)
                continue
            for shape in dict.fromkeys(parameter.shape[-2:] for parameter in given):
                self._muon([parameter for parameter in given if parameter.shape[-2:] == shape], group)

    def _muon(self, alike: list[Tensor], group: dict[str, Any]) -> None:
        """A step of matrices of one shape."""
        momentum, (rows, columns) = group["momentum"], alike[0].shape[-2:]
        directions = []
        for parameter in alike:
            mean = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            mean.lerp_(parameter.grad, 1 - momentum)
            directions.append(parameter.grad.lerp(mean, momentum).reshape(-1, rows, columns))  # type: ignore[union-attr]
        updates = orthogonal(torch.cat(directions)) * max(1, rows / columns) ** 0.5
        for parameter, update in zip(alike, updates.split([len(one) for one in directions]), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(update.reshape(parameter.shape), alpha=group["lr"])

    def _adamw(self, given: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in given:
            if not self.state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {**zeros, "step": torch.zeros(())}
        means, squares, steps = (
            [self.state[parameter][name] for parameter in given] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        adamw(
            given,
            [parameter.grad for parameter in given],  # type: ignore[misc]
            means,
            squares,
            [],
            steps,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonal(matrices: Tensor) -> Tensor:
    """(N, rows, columns) with all singular values near 1 and the same singular vectors: five steps of Newton-Schulz."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x
