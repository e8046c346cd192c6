"""One optimisation step and one validation step, as MONAI ``iteration_update`` functions; the learning rate's shape."""

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from vivid_monai.engines.speed import operations
from vivid_monai.errors import VividError
from vivid_monai.images.augment import RandomAugmentation

logger = logging.getLogger(__name__)


def warmup_cosine(
    optimizer: Optimizer, *, steps: int, warmup_steps: int = 500, final_fraction: float = 0.1
) -> LambdaLR:
    """Scheduler stepped once per optimiser step (paper: 500 warm-up steps, cosine to 10 % of each group's peak).

    Args:
        steps: optimiser steps of the whole run.
        warmup_steps: steps from 0 to the peak; must leave room for the cosine.
        final_fraction: learning rate at the end, as a fraction of the peak, in [0, 1].

    Raises:
        VividError: the warm-up does not fit into the run, or the fraction is out of range.
    """
    if not 0 <= warmup_steps < steps:
        raise VividError(
            f"warmup_steps={warmup_steps} does not fit into a run of {steps} steps; set --warmup_steps below the "
            "run's length (max_epochs x epoch_length)"
        )
    if not 0 <= final_fraction <= 1:
        raise VividError(f"final_fraction must lie in [0, 1], got {final_fraction}")
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps, min_lr_rate=final_fraction
    )


class PrepareBatch:
    """A ``prepare_batch`` of MONAI's engines: moves a collated batch to the device, and augments it there.

    Args:
        augmentation: that of the data set, which drew for each item what it does here to the batch of bytes. A batch
            without draws is taken as it is.
    """

    def __init__(self, augmentation: RandomAugmentation | None = None) -> None:
        self.augmentation = augmentation

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The images and targets of the batch, one of each per image; see :mod:`vivid_monai.data.dataset`."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device=device, non_blocking=non_blocking, **kwargs)
            return [move(one) for one in value] if isinstance(value, list) else value

        moved = {key: move(value) for key, value in batch.items() if key not in ("skipped", "padding", "drawn")}
        if self.augmentation is None or "drawn" not in batch:
            return moved
        drawn = batch["drawn"].to(moved["image"].device, non_blocking=non_blocking)
        return self.augmentation.batch({**moved, "drawn": drawn})


class PretrainStep:
    """One optimiser step of :class:`monai.engines.SupervisedTrainer` over one batch of its loader.

    The network is a :class:`~vivid_monai.networks.pretrainer.Pretrainer`, the loss function its ``loss``. The counts of
    its terms are those of the whole step, taken before the first forward pass, so a step has the same gradient however
    it is cut into micro-batches or spread over processes. Batch norms are the exception: each part of a step has its
    own statistics (of several GPUs, all together: `SyncBatchNorm`), of which the first step warns.

    All numbers of a step are read from the device at once, after the backward pass and before the optimiser's step:
    this is the only time that the host waits for the device.

    In the second step torch's counter looks on: ``engine.state.flop_per_image`` is what this process computed, by the
    image. Nothing is computed twice or in another way for it, so the weights are those of a run without it. Of what is
    compiled there is no count, and layers in 8 or 4 bits are not seen.

    Args:
        micro_batch_size: most images of a forward pass: the batch is cut into equally many parts on every process, of
            sizes that differ by at most one; ``None`` takes it whole.
        clip_norm: gradients are scaled down to this global 2-norm; ``None`` leaves them alone.

    Returns (as ``engine.state.output``, a list of one dict, as MONAI's handlers expect): numbers ``loss``, each term
    (its sum by its count), ``grad_norm`` (before clipping) and ``count/`` of each term, of the whole step over all
    processes.

    Raises:
        VividError: the loss or the gradient is not finite: the optimiser has not used it; or the objective compares
            the images of a batch with each other and the batch was to be cut.
    """

    def __init__(self, *, micro_batch_size: int | None = None, clip_norm: float | None = 1.0) -> None:
        if micro_batch_size is not None and micro_batch_size < 1:
            raise VividError(f"micro_batch_size must be at least 1, got {micro_batch_size}")
        self.micro_batch_size = micro_batch_size
        self.clip_norm = clip_norm
        self._number = 0

    def __call__(self, engine: Any, batch: Mapping[str, Any]) -> list[dict[str, float]]:
        self._number += 1
        if self._number != 2 or _is_compiled(unwrap(engine.network)):
            return self._step(engine, batch)
        with operations() as counter:
            told = self._step(engine, batch)
        engine.state.flop_per_image = counter.get_total_flops() / max(1, len(batch["image"]))
        return told

    def _step(self, engine: Any, batch: Mapping[str, Any]) -> list[dict[str, float]]:
        whole = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        network, pretrainer = engine.network, unwrap(engine.network)
        network.train()
        engine.optimizer.zero_grad(set_to_none=True)

        # All processes are given equally many images, so that they cut alike, whatever of them can be read: a teacher
        # that is spread over them has to run as often on each.
        images = len(whole["image"]) + len(batch.get("skipped", ()))
        parts = -(-images // (self.micro_batch_size or images))
        if parts > 1 and pretrainer.whole_batch:
            raise VividError(
                f"micro_batch_size={self.micro_batch_size} would cut a batch of {images} images whose objective "
                "compares them with each other: set it to null and take a smaller batch_size, or more processes"
            )
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        if self._number == 1:
            _tell_of_batch_norms(pretrainer, parts, world_size)
        terms = list(pretrainer.weights)
        own = pretrainer.counts(whole)
        counts = sum_over_ranks(torch.stack([own[term] for term in terms]).double()).clamp(min=1)
        # DDP averages the gradients of the processes, so each divides by its share of the count.
        shares = dict(zip(terms, (counts / world_size).float().unbind(), strict=True))

        losses, sums = [], torch.zeros(len(terms), dtype=torch.float64, device=counts.device)
        cuts = np.array_split(np.arange(len(whole["image"])), parts)
        for number, indices in enumerate(cuts):
            more = number < parts - 1 and isinstance(network, DistributedDataParallel)
            with network.no_sync() if more else nullcontext():
                # Of no image the terms are 0, but the network runs as well.
                start, stop = (int(indices[0]), int(indices[-1]) + 1) if len(indices) else (0, 1)
                with autocast(engine):
                    output = network({key: value[start:stop] for key, value in whole.items()})
                    if not len(indices):
                        output = {term: 0 * value for term, value in output.items()}
                loss = engine.loss_function(output, shares)
                loss.backward()
            losses.append(loss.detach().double())
            sums += torch.stack([output[term].detach() for term in terms]).double()
        loss = sum_over_ranks(sum(losses[1:], losses[0]) / world_size)
        sums = sum_over_ranks(sums)

        trained = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, float("inf") if self.clip_norm is None else self.clip_norm)
        numbers = torch.cat([loss[None], sums / counts, norm.double()[None], counts, torch.stack(losses)]).tolist()
        told = dict(zip(["loss", *terms, "grad_norm", *(f"count/{term}" for term in terms)], numbers, strict=False))
        if not math.isfinite(told["loss"] + told["grad_norm"]):
            what, lost = f"gradient became {told['grad_norm']}", cuts  # any image may have made it so
            if not math.isfinite(told["loss"]):
                what = f"loss became {told['loss']}"
                lost = [cut for cut, own in zip(cuts, numbers[-parts:], strict=True) if not math.isfinite(own)]
            ids = ", ".join(str(batch["id"][i]) for cut in lost for i in cut)
            raise VividError(
                f"the {what} at step {engine.state.iteration}; the weights are as before it; lower the learning rate, "
                f"or {f'look at the images: {ids}' if ids else 'see what another process says of its images'}"
            )
        engine.optimizer.step()
        return [told]


class ValidationStep:
    """What the network predicts for a validation batch; no prediction depends on a target.

    Returns (as ``engine.state.output``): by the name of each objective what its ``predict`` says, B images each; under
    ``"dataset"`` the name of each image's data set, where the batch has them; and under ``"blank"`` what is said of one
    image that is an even grey, computed once for a pass. B is 0 for padding
    (:class:`~vivid_monai.engines.setup.InStep`).
    """

    def __init__(self) -> None:
        self._blank: dict[str, dict[str, Tensor]] = {}

    def __call__(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        whole = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        network = unwrap(engine.network)
        network.eval()
        kept = 0 if batch.get("padding") else len(whole["image"])
        with torch.no_grad(), autocast(engine):
            predicted = network.predict(whole)
            if engine.state.iteration == 1:
                first = {key: value[:1] for key, value in whole.items()}
                self._blank = network.predict({**first, "image": torch.zeros_like(first["image"])})
        datasets = {"dataset": whole["dataset"]} if "dataset" in whole else {}
        return {
            name: {**{key: value[:kept] for key, value in (output | datasets).items()}, "blank": self._blank[name]}
            for name, output in predicted.items()
        }


def unwrap(network: nn.Module) -> Any:
    """The module inside :class:`~torch.nn.parallel.DistributedDataParallel`, or the module itself."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def _is_compiled(network: nn.Module) -> bool:
    return any(module._compiled_call_impl is not None for module in network.modules())


def _tell_of_batch_norms(network: nn.Module, parts: int, world_size: int) -> None:
    """Warn, in the first process, where a batch norm sees less than all images of a step."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    apart = 1 if all(isinstance(norm, nn.SyncBatchNorm) for norm in norms) else world_size
    if norms and parts * apart > 1 and not (dist.is_initialized() and dist.get_rank()):
        logger.warning(
            "the network has batch norms, and each of the %d parts of a step is normalised by itself: the result "
            "depends on --micro_batch_size and, on CPUs, on the number of processes",
            parts * apart,
        )


def sum_over_ranks(values: Tensor) -> Tensor:
    """``values`` summed over the processes of a distributed run; unchanged in a single one."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def autocast(engine: Any) -> AbstractContextManager[Any]:
    """Autocast to bf16, which needs no loss scaling, when the engine's ``amp`` is on; ``amp_kwargs`` may override."""
    device = torch.device(engine.state.device).type
    return torch.autocast(device, **{"dtype": torch.bfloat16, **engine.amp_kwargs, "enabled": engine.amp})
