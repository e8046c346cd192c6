"""A frozen LM spread over the processes of a run, for one that does not fit on every device."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from vivid_monai.errors import VividError
from vivid_monai.networks.teacher.frozen_lm import FrozenLM


def spread(lm: FrozenLM, device: torch.device) -> FrozenLM:
    """Spread an LM's decoder layers over all processes, in place, by FSDP2; what it computes stays the same.

    Every process keeps its part of each layer on `device` and gathers a layer while it runs, forward and backward. The
    embeddings, the final norm and the head stay whole on every process, as teachers read them directly. From then on
    all processes must run the LM equally often (`vivid_monai.engines.in_step.InStep`).

    Layers move to `device` one by one, so the LM may be larger than the device while it is on the CPU.

    Raises:
        VividError: there is one process only, or the LM's class does not say what its layers are.
    """
    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise VividError(
            f"{lm.name}: shard=True spreads it over several processes, and there is one; start them by torchrun with "
            "configs/multi_gpu_train.json"
        )
    kinds = set(lm.model._no_split_modules or ())
    layers = [module for module in lm.model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise VividError(f"{lm.name}: {type(lm.model).__name__} does not name its layers; it cannot be sharded")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    # The root, which holds nothing itself, lets one layer be gathered while another runs.
    fully_shard(lm.model.base_model, mesh=mesh, ignored_params=set(lm.model.parameters()) - inside)
    return lm.to(device)
