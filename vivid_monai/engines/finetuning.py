"""What a fine-tuning trains of an encoder, and which of its weights are kept: averaged, the best on validation."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vivid_monai.engines.optimizer import blocks, layers
from vivid_monai.engines.step import unwrap
from vivid_monai.errors import VividError
from vivid_monai.networks.language import add_adapters

logger = logging.getLogger(__name__)
TRAINED = re.compile(r"all|head|last:(\d+)|lora:(\d+)").fullmatch


def train_only(encoder: Any, trained: str, *, seed: int = 0) -> Any:
    """Say what of an encoder is trained, in place; the rest is frozen.

    What its tokens do not depend on is frozen in any case: it has no gradient, which several processes refuse.

    Args:
        encoder: a backbone.
        trained: "all"; "head", nothing of it; "last:N", its last N blocks and what follows them; "lora:R", adapters
            of rank R at the linear maps inside its blocks (Hu et al. 2022, arXiv:2106.09685), scaled by 2, which
            :func:`merge_adapters` adds to the weights.
        seed: of the adapters' first weights, with which the encoder computes what it computed before.

    Returns:
        The encoder.

    Raises:
        VividError: another word, fewer than N blocks, no linear map in them, or peft is not installed.
    """
    match = TRAINED(trained)
    if not match or match[1] == "0" or match[2] == "0":
        raise VividError(f"trained={trained!r} must be all, head, last:N or lora:R, such as last:4 or lora:8")
    encoder.requires_grad_(trained == "all")
    if match[1]:
        layer_of, depth = layers(encoder), len(blocks(encoder))
        if (n := int(match[1])) > depth:
            raise VividError(f"trained={trained!r}: this encoder ({encoder.architecture}) has {depth} blocks")
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(layer_of[name] > depth - n)
    elif match[2]:
        # Not those in torch's own attention, which hands their weights to a kernel.
        maps = [
            f"{block}.{name}"
            for block, inside in blocks(encoder).items()
            for name, module in inside.named_modules()
            if type(module) is nn.Linear
        ]
        if not maps:
            raise VividError(f"trained={trained!r}: {encoder.architecture} has no linear maps in its blocks: last:N")
        rank = int(match[2])
        settings = {"r": rank, "lora_alpha": 2 * rank, "target_modules": maps}
        add_adapters(encoder, settings, name=f"trained={trained!r}", seed=seed)
    _freeze_unused(encoder)
    return encoder


def _freeze_unused(encoder: Any) -> None:
    wanted = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    if wanted:
        training = encoder.training
        tokens = encoder.eval()(torch.zeros(1, *encoder.image_shape, device=wanted[0].device))
        for parameter, gradient in zip(
            wanted, torch.autograd.grad(tokens.sum(), wanted, allow_unused=True), strict=True
        ):
            parameter.requires_grad_(gradient is not None)
        encoder.train(training)


def merge_adapters(encoder: nn.Module) -> None:
    """Add the adapters of "lora:R" to the weights and take them out, in place; others are left as they are."""
    adapted = {name: module for name, module in encoder.named_modules() if hasattr(module, "lora_A")}
    for name, module in adapted.items():
        module.merge(safe_merge=True)  # type: ignore[operator]
        encoder.set_submodule(name, module.get_base_layer())  # type: ignore[operator]


class Average:
    """Trainer handler: an exponential moving average of the weights, a step at a time.

    Attributes:
        network: the average, in evaluation mode; without a decay the trained network itself. It is what is validated.

    Args:
        network: what is trained, on its device; may be wrapped by `DistributedDataParallel`.
        decay: the part that stays of the average in a step, in [0, 1), such as 0.99; 0: no average.

    Raises:
        VividError: a decay out of its range.
    """

    def __init__(self, network: nn.Module, *, decay: float = 0.0) -> None:
        if not 0 <= decay < 1:
            raise VividError(f"ema={decay} must lie in [0, 1), such as 0.99; 0 takes the weights themselves")
        self._trained = unwrap(network)
        # It interpolates, so what is frozen stays as it is to the last bit.
        average = get_ema_multi_avg_fn(decay)
        self._averaged = AveragedModel(self._trained, multi_avg_fn=average) if decay else None
        self.network = self._averaged.module.eval() if self._averaged else self._trained

    def attach(self, engine: Engine) -> None:
        if self._averaged:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._averaged.update_parameters, self._trained)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._averaged.state_dict()) if self._averaged else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._averaged:
            self._averaged.load_state_dict(state)


class BestWeights:
    """Trainer handler: keeps the weights with the best validation, and ends a training that gets no better.

    The first validation is before the first step, so the best may be those the training started from. A later one has
    to be better. The weights travel with the checkpoint, as do what they measured and how long ago that was.

    Args:
        network: what is validated and kept.
        validator: its key metric judges, the higher the better.
        patience: validations in a row without a better one after which the training ends; None: it never does.

    Raises:
        VividError: a patience under 1; while training: the validation images measure nothing.
    """

    def __init__(self, network: nn.Module, *, validator: Any, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise VividError(f"patience={patience} must be at least 1, or null to train to the end")
        self._network, self._validator, self._patience = network, validator, patience
        self._step, self._value, self._waited = 0, float("-inf"), 0
        self._weights: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        self._validator.add_event_handler(Events.COMPLETED, self._judge, engine)
        engine.add_event_handler(Events.STARTED, self._start)

    def state_dict(self) -> dict[str, Any]:
        told = {"step": self._step, "value": self._value, "waited": self._waited}
        return {**told, "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step, self._value, self._waited = (state[name] for name in ("step", "value", "waited"))
        self._weights = dict(state["weights"])

    @property
    def words(self) -> str:
        """Which weights are kept, in words."""
        name = self._validator.state.key_metric_name
        return f"of step {self._step}, validation {name} {self._value:.3f}"

    def restore(self, network: nn.Module) -> None:
        """Give a network the best weights."""
        network.load_state_dict(self._weights)
        if idist.get_rank() == 0:
            logger.info("the best weights are those %s", self.words)

    def _start(self, engine: Engine) -> None:
        if not engine.state.iteration:
            self._validator.run(0)
        elif self._spent:
            engine.terminate()

    @property
    def _spent(self) -> bool:
        return self._patience is not None and self._waited >= self._patience

    def _judge(self, engine: Engine) -> None:
        name = self._validator.state.key_metric_name
        value = float(self._validator.state.metrics[name])
        if value != value:
            raise VividError(
                f"no weights can be chosen: the validation images measure no {name}; give more of them (--val_images), "
                "or count fields with fewer (--min_present, --min_absent)"
            )
        if value > self._value:
            self._step, self._value, self._waited = engine.state.iteration, value, 0
            state = self._network.state_dict()
            self._weights = {key: tensor.detach().to("cpu", copy=True) for key, tensor in state.items()}
            return
        self._waited += 1
        if self._spent:
            if idist.get_rank() == 0:
                logger.info("step %d: no better validation in %d", engine.state.iteration, self._waited)
            engine.terminate()
