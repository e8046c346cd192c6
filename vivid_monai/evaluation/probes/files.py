"""A linear probe on disk, with its fields and the encoder whose features it takes."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vivid_monai.errors import VividError
from vivid_monai.evaluation.probes.base import Probe
from vivid_monai.evaluation.probes.linear import LinearProbe
from vivid_monai.storage.files import whole_file

FORMAT, VERSION = "vivid-probe", "1"


def save_probe(probe: Probe, path: str | PathLike, *, fields: Sequence[str]) -> None:
    """Write a linear or published probe as one safetensors file, whole or not at all.

    Args:
        probe: fitted on features that say which encoder they are of.
        fields: names of its columns.

    Raises:
        VividError: another kind of probe, an unknown encoder, not a name for each column, a file that cannot be
            written.
    """
    if not isinstance(probe, LinearProbe):
        raise VividError(f"{path}: a {type(probe).__name__} is as large as its training set and is not stored")
    if len(set(fields)) != len(probe.bias) or len(fields) != len(probe.bias) or not probe.encoder:
        raise VividError(
            f"{path}: a probe of {len(probe.bias)} columns needs a name for each and its encoder's fingerprint"
        )
    metadata = {
        "fields": list(fields),
        "encoder": probe.encoder,
        "exclusive": probe.exclusive,
        "untrained": probe.untrained,
        "description": probe.describe(),
    }
    told = {"format": FORMAT, "version": VERSION, **{name: json.dumps(value) for name, value in metadata.items()}}
    with whole_file(path) as part:
        part.write_bytes(save({"weight": probe.weight, "bias": probe.bias}, metadata=told))


def load_probe(path: str | PathLike, *, encoder: str) -> tuple[LinearProbe, tuple[str, ...]]:
    """Read a file of :func:`save_probe`.

    Args:
        encoder: fingerprint of the encoder whose features the probe is going to take.

    Returns:
        The probe and the names of its columns.

    Raises:
        VividError: no such file, not one of ours, broken, or fitted on the features of another encoder.
    """
    try:
        with safe_open(Path(path), framework="numpy") as file:
            told = file.metadata() or {}
            if (told.get("format"), told.get("version")) != (FORMAT, VERSION):
                raise VividError(f"{path}: is no probe of save_probe, version {VERSION}")
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        meta = {name: json.loads(told[name]) for name in ("fields", "encoder", "exclusive", "untrained", "description")}
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise VividError(f"{path}: cannot be read as a probe: {error}") from error
    if weight.ndim != 2 or not len(weight) == len(bias) == len(meta["fields"]):
        raise VividError(f"{path}: weights {weight.shape} and {len(meta['fields'])} fields do not go together")
    if meta["encoder"] != encoder:
        raise VividError(
            f"{path}: this probe takes features of the encoder {meta['encoder'][:12]}…, not of {encoder[:12]}…; "
            "weights, pooling and preprocessing must be the very same. Fit a probe for this encoder"
        )
    probe = LinearProbe(weight, bias, meta["exclusive"], tuple(meta["untrained"]), meta["encoder"], meta["description"])
    return probe, tuple(meta["fields"])
