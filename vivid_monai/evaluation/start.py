"""The encoder that a training starts from: pretraining (`configs/backbone/encoder.json`) and fine-tuning."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder, load_encoder
from vivid_monai.evaluation.workflows import INITIAL


def load_start(
    spec: str | None,
    output_dir: str | Path,
    *,
    tokens: bool = True,
    pool: str | None = None,
    seed: int = 0,
    **knobs: Any,
) -> Encoder:
    """The frozen encoder that a training starts from: the file of it that the run has, else what `spec` names.

    Args:
        spec, pool, seed: as of :func:`~vivid_monai.evaluation.encoders.load_encoder`; a resumed run does not ask them.
        output_dir: the run's folder.
        tokens: they are read, so in place of the network's own pooled output is their mean.
        knobs: what `train.json` says of network and preprocessing, by name: None, or what the encoder says itself.

    Raises:
        VividError: no spec; as `load_encoder`; a knob says something else.
    """
    if (path := Path(output_dir) / INITIAL).exists():
        return load_encoder(str(path))
    if not spec:
        raise VividError(
            "no encoder to start from: give --start ENCODER, such as runs/phantom/001, transformers:FOLDER, "
            "timm:NAME or untrained:runs/phantom/001"
        )
    given = load_encoder(spec, pool=pool, seed=seed)
    if tokens and given.pool == "pooled":
        given = load_encoder(spec, pool="mean", seed=seed)
    own = {"image_size": given.preprocess.size, "in_channels": given.preprocess.shape[0]}
    own |= {name: getattr(given.preprocess, name) for name in ("mean", "std")}
    for name, value in knobs.items():
        if value is not None and not np.array_equal(np.unique(value), np.unique(own.get(name, ""))):
            raise VividError(
                f"{name}={value!r} is not that of the start encoder ({given.architecture}, {name} "
                f"{own.get(name, 'its own')}): its network and preprocessing are kept, so leave it out"
            )
    return given


def trainable(encoder: Encoder, *, drop_path: float = 0.0) -> Any:
    """A copy of an encoder's backbone to train, with drop path where it has it.

    Raises:
        VividError: a drop path for a backbone without.
    """
    network = encoder.network
    if "drop_path" not in network.config:
        if drop_path:
            raise VividError(f"drop_path={drop_path}: {encoder.architecture} has no drop path; leave it at 0")
        return copy.deepcopy(network).requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        own = type(network)(**{**network.config, "drop_path": drop_path})
    own.load_state_dict(network.state_dict())
    return own
