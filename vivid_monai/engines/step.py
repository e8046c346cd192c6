"""One optimisation step and one validation step of pretraining, as MONAI ``iteration_update`` functions."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from vivid_monai.errors import VividError
from vivid_monai.images.augment import RandomAugmentation


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


def prepare_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """``(image, (states, asked))`` of a collated batch on ``device``; see :mod:`vivid_monai.data.dataset`."""
    image, states, asked = (
        batch[key].to(device=device, non_blocking=non_blocking, **kwargs) for key in ("image", "states", "asked")
    )
    return image, (states, asked)


class PretrainLoss:
    """Cross-entropy of the teacher over the supervised positions, plus the SPD penalty.

    ``loss = Σ nll / supervised + orthogonality · Σ penalty / images``, where the two denominators are those of the
    whole optimisation step: they are counted before the first forward pass, so a step gives the same gradient however
    it is cut into micro-batches or spread over processes. The method's paper uses λ = 0.01.

    Args:
        orthogonality: the weight λ of the penalty, at least 0.
    """

    def __init__(self, *, orthogonality: float = 0.01) -> None:
        if orthogonality < 0:
            raise VividError(f"orthogonality is a weight and cannot be negative, got {orthogonality}")
        self.orthogonality = orthogonality

    def __call__(self, output: Mapping[str, Tensor], supervised: Tensor, images: Tensor) -> Tensor:
        """Scalar loss of a (micro-)batch; ``output`` is that of :class:`vivid_monai.networks.pretrainer.Pretrainer`."""
        nll = output["nll"].float().sum() / supervised.clamp(min=1)
        return nll + self.orthogonality * output["penalty"].float().sum() / images


class PretrainStep:
    """One optimiser step of :class:`monai.engines.SupervisedTrainer` over one batch of its loader.

    The batch of the loader is the batch of the optimiser; ``micro_batch_size`` cuts it where memory asks for it, into
    equally many parts on every process, of sizes that differ by at most one.

    Args:
        micro_batch_size: most images of a forward pass; ``None`` takes the whole batch at once.
        clip_norm: gradients are scaled down to this global 2-norm; ``None`` leaves them alone.

    Returns (as ``engine.state.output``, a list of one dict, as MONAI's handlers expect): numbers ``loss``, ``nll``
    (mean per supervised token), ``penalty`` (mean per image), ``grad_norm`` (before clipping), ``supervised`` and
    ``images``, of the whole step over all processes.
    """

    def __init__(self, *, micro_batch_size: int | None = None, clip_norm: float | None = 1.0) -> None:
        if micro_batch_size is not None and micro_batch_size < 1:
            raise VividError(f"micro_batch_size must be at least 1, got {micro_batch_size}")
        self.micro_batch_size = micro_batch_size
        self.clip_norm = clip_norm

    def __call__(self, engine: Any, batch: Mapping[str, Any]) -> list[dict[str, float]]:
        image, (states, asked) = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        network = engine.network
        network.train()
        engine.optimizer.zero_grad(set_to_none=True)

        world_size = dist.get_world_size() if dist.is_initialized() else 1
        counts = torch.stack(
            [unwrap(network).count(states, asked).sum(), torch.tensor(len(image), device=image.device)]
        )
        counts = sum_over_ranks(counts.double())
        supervised, images = (counts / world_size).float()  # DDP averages the gradients of the ranks

        sums = torch.zeros(3, dtype=torch.float64, device=image.device)
        parts = cut(len(image), self.micro_batch_size)
        ids = np.array_split(batch["id"], parts)
        whole = (image, states, asked)
        for number, part in enumerate(zip(*(tensor.tensor_split(parts) for tensor in whole), strict=True)):
            with _no_sync(network, number < parts - 1):
                with autocast(engine):
                    output = answer(network, part, whole)
                loss = engine.loss_function(output, supervised, images)
                if not torch.isfinite(loss):
                    raise VividError(
                        f"the loss became {loss.item()} at step {engine.state.iteration}; lower the learning rate, or "
                        "look at the last images: " + ", ".join(map(str, ids[number]))
                    )
                loss.backward()
            sums += torch.stack(
                [loss.detach(), output["nll"].detach().sum(), output["penalty"].detach().sum()]
            ).double()
        sums[0] /= world_size
        loss, nll, penalty = sum_over_ranks(sums).tolist()

        trained = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, float("inf") if self.clip_norm is None else self.clip_norm)
        engine.optimizer.step()
        n_supervised, n_images = counts.tolist()
        told = {
            "loss": loss,
            "nll": nll / max(n_supervised, 1),
            "penalty": penalty / n_images,
            "grad_norm": float(norm),
        }
        return [{**told, "supervised": n_supervised, "images": n_images}]


class ValidationStep:
    """Ask the network about every field of every image of a validation batch, without telling it the answers.

    Returns (as ``engine.state.output``): ``log_probs`` float32 (B, F, 3) over absent, present, uncertain; ``states``
    int64 (B, F); ``blank`` float32 (1, F, 3), the same for an image that is one even grey. B is 0 for padding
    (:class:`~vivid_monai.engines.setup.InStep`).
    """

    def __call__(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        image, (states, _) = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        network = unwrap(engine.network)
        network.eval()
        everything = torch.ones_like(states, dtype=torch.bool)
        kept = 0 if batch.get("padding") else len(image)
        with torch.no_grad(), autocast(engine):
            log_probs = network(image, states, everything)["log_probs"]
            blank = network(torch.zeros_like(image[:1]), states[:1], everything[:1])["log_probs"]
        return {"log_probs": log_probs[:kept].float(), "states": states[:kept], "blank": blank.float()}


def cut(images: int, most: int | None) -> int:
    """Into how many parts every process cuts its batch, so that no part of any of them holds more than ``most`` images.

    The processes cut alike: a teacher that is spread over them has to run as often on each, and images that cannot be
    read make their batches differ in size.
    """
    parts = -(-images // (most or images))
    return int(idist.all_reduce(parts, "MAX")) if idist.get_world_size() > 1 else parts  # type: ignore[arg-type]


def answer(network: nn.Module, part: Sequence[Tensor], whole: Sequence[Tensor]) -> dict[str, Tensor]:
    """What ``network`` says of a part of the batch ``whole``; of a part without an image zeros, but it runs as well."""
    if len(part[0]):
        return network(*part)
    return {name: 0 * value.float() for name, value in network(*(tensor[:1] for tensor in whole)).items()}


def unwrap(network: nn.Module) -> Any:
    """The module inside :class:`~torch.nn.parallel.DistributedDataParallel`, or the module itself."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def sum_over_ranks(values: Tensor) -> Tensor:
    """``values`` summed over the processes of a distributed run; unchanged in a single one."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def autocast(engine: Any) -> AbstractContextManager[Any]:
    """Autocast to bf16, which needs no loss scaling, when the engine's ``amp`` is on; ``amp_kwargs`` may override."""
    device = torch.device(engine.state.device).type
    return torch.autocast(device, **{"dtype": torch.bfloat16, **engine.amp_kwargs, "enabled": engine.amp})


def _no_sync(network: nn.Module, more_to_come: bool) -> AbstractContextManager[Any]:
    return network.no_sync() if more_to_come and isinstance(network, DistributedDataParallel) else nullcontext()


class AugmentedBatch:
    """A trainer's ``prepare_batch``: moves pixels as uint8, a quarter of the bytes, and augments them on the device.

    Args:
        augmentation: that of the data set, which drew for each item what it does here to the batch.
    """

    def __init__(self, augmentation: RandomAugmentation) -> None:
        self.augmentation = augmentation

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As :func:`~vivid_monai.engines.step.prepare_batch`."""
        pixels, asked = prepare_batch(batch, device, non_blocking, **kwargs)
        return self.augmentation(pixels, batch["drawn"].to(pixels.device, non_blocking=non_blocking)), asked
