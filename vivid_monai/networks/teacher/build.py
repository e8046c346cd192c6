"""One call that builds any teacher, for configs."""

from collections.abc import Sequence
from pathlib import Path

import torch

from vivid_monai.assets import tiny_teacher_path
from vivid_monai.errors import VividError
from vivid_monai.networks.teacher.base import Teacher
from vivid_monai.networks.teacher.load import load_frozen_lm
from vivid_monai.networks.teacher.none import StateClassifier
from vivid_monai.networks.teacher.phrases import PhraseTeacher
from vivid_monai.networks.teacher.published import PublishedTeacher
from vivid_monai.networks.teacher.short_slots import ShortSlotTeacher
from vivid_monai.networks.teacher.slots import SlotTeacher

LAYOUTS = ("short_slots", "slots", "published", "phrases")


def build_teacher(
    *,
    fields: Sequence[str],
    kind: str = "lm",
    path: str | Path | None = None,
    layout: str = "short_slots",
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
    seed: int = 0,
    padding_side: str = "right",
    cache_schema: bool = True,
    choose_from: str = "vocabulary",
    layers: int | None = None,
    bits: int | None = None,
    shard: bool = False,
    embed_dim: int = 256,
) -> Teacher:
    """Build a teacher.

    Args:
        fields: names of the fields, in label-space order.
        kind: "lm" (a frozen causal LM), "random" (the same architecture with random weights) or "none" (no LM: a state
            classifier, trained).
        path: folder or hub name of the LM; None is the tiny teacher that comes with the package.
        layout: "short_slots", "slots", "published", or "phrases" (the LM reads the possible answers once and is not
            kept).
        dtype, device, attn_implementation, layers, bits, shard: how the LM is held; see `load_frozen_lm`.
        seed: of the random weights of kind "random".
        padding_side: "left" or "right".
        cache_schema, choose_from: see `SlotTeacher`.
        embed_dim: width of the image embeddings for kind "none"; an LM dictates its own.

    Raises:
        VividError: for a wrong argument, or an LM that cannot be had.
    """
    if kind not in ("lm", "random", "none"):
        raise VividError(f"teacher kind must be lm, random or none, got {kind!r}")
    if layout not in LAYOUTS:
        raise VividError(f"teacher layout must be {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}, got {layout!r}")
    if kind == "none":
        return StateClassifier(fields, embed_dim)
    lm = load_frozen_lm(
        tiny_teacher_path() if path is None else path,
        weights="random" if kind == "random" else "pretrained",
        seed=seed,
        dtype=dtype,
        device=device,
        attn_implementation=attn_implementation,
        layers=layers,
        bits=bits,
        shard=shard,
    )
    if layout == "phrases":
        return PhraseTeacher(lm, fields)
    if layout == "published":
        return PublishedTeacher(lm, fields, padding_side=padding_side)
    if layout == "short_slots":
        return ShortSlotTeacher(lm, fields)
    return SlotTeacher(lm, fields, padding_side=padding_side, cache_schema=cache_schema, choose_from=choose_from)
